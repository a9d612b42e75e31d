"""What reports of failing tests say of calls."""

from __future__ import annotations

import pytest

from jmp.client import calls
from jmp.client.interfaces import client_class
from jmp.driver import serve
from jmp.driver.proxy import Blocking
from jmp.errors import BadValue
from jmp_drivers.network import Echo
from jmp_drivers.ssh import Ssh


def test_secrets_of_an_answer_are_in_no_report() -> None:
    told: list[calls.Call] = []
    calls.taps.append(told.append)
    try:
        with serve(Ssh(host="127.0.0.1", password="geheim"), class_of=client_class) as ssh:
            calls.watched(ssh._wrapped._backend)
            assert ssh.identity()["password"] == "geheim"
    finally:
        calls.taps.remove(told.append)
    (call,) = told
    assert "'password': '***'" in call.answer
    assert "'user': 'root'" in call.answer


def test_a_byte_stream_that_is_refused_is_told_with_its_error() -> None:
    told: list[calls.Call] = []
    calls.taps.append(told.append)
    try:
        with serve(Echo(), class_of=client_class) as echo:
            calls.watched(echo._wrapped._backend)
            with pytest.raises(BadValue), Blocking(echo._wrapped._backend.open("", "connect", (5,), {})):
                pass
            with Blocking(echo._wrapped._backend.open("", "connect", (), {})):
                pass
    finally:
        calls.taps.remove(told.append)
    assert [call.answer.partition(":")[0] for call in told] == ["BadValue", "a byte stream"]
