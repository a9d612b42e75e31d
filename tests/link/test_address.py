from __future__ import annotations

import pytest

from jmp.errors import UsageError
from jmp.link.address import Address, parse


@pytest.mark.parametrize(
    ("url", "address", "text", "authority"),
    [
        ("unix:/run/x.sock", Address("unix", "", 0, "/run/x.sock"), "unix:/run/x.sock", "localhost"),
        ("unix:///run/x", Address("unix", "", 0, "/run/x"), "unix:/run/x", "localhost"),
        ("unix://///run//x", Address("unix", "", 0, "/run//x"), "unix:/run//x", "localhost"),
        ("unix:here", Address("unix", "", 0, "here"), "unix:here", "localhost"),
        ("ws://lab", Address("ws", "lab", 80, "/"), "ws://lab/", "lab"),
        ("wss://lab", Address("wss", "lab", 443, "/"), "wss://lab/", "lab"),
        ("ws://10.0.0.1:4711/a?b", Address("ws", "10.0.0.1", 4711, "/a?b"), "ws://10.0.0.1:4711/a?b", "10.0.0.1:4711"),
        ("wss://[::1]:8443/", Address("wss", "::1", 8443, "/"), "wss://[::1]:8443/", "[::1]:8443"),
        (
            "wss://bücher.example",
            Address("wss", "xn--bcher-kva.example", 443, "/"),
            "wss://xn--bcher-kva.example/",
            "xn--bcher-kva.example",
        ),
        ("wss://[::1]", Address("wss", "::1", 443, "/"), "wss://[::1]/", "[::1]"),
    ],
)
def test_addresses(url: str, address: Address, text: str, authority: str) -> None:
    assert parse(url) == address
    assert str(address) == text
    assert address.authority == authority


@pytest.mark.parametrize(
    "url",
    [
        *("", "lab", "lab:80", "unix:", "unix:/a\0b", "http://lab", "ws:/lab", "ws://", "ws://:80", "ws://lab:"),
        *("ws://lab:0", "ws://lab:65536", "ws://lab:x", "ws://lab:²", "ws://[::1", "ws://[::1]80", "ws://lab/#x"),
        *(
            "ws://.lab",
            "ws://lab..x",
            "ws://two words",
            "ws://lab\n",
            "wss://" + "a" * 64,
            "wss://" + "ü" * 64,
            "ws://\u00a0",
        ),
    ],
)
def test_not_an_address(url: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        parse(url)


def test_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(UsageError) as error:
        parse("wss://me:secret@lab")
    assert "secret" not in error.value.message
