"""A session: its drivers, its socket for local programs, and the methods of @session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
import trio.testing

import jmp
from jmp.driver import Driver
from jmp.errors import BadValue, Busy, ConfigError, DeviceError, NotFound, Refused
from jmp.exporter import config as configuration
from jmp.exporter.session import TARGET, open_session
from tests.fakes.exporters import Lamp, begin, bench, connected, lamp


@pytest.fixture(autouse=True)
def journal() -> Iterator[list[str]]:
    Lamp.journal.clear()
    yield Lamp.journal
    Lamp.journal.clear()


async def test_any_number_of_local_programs_use_it(tmp_path: Path) -> None:
    async with open_session(bench(tmp_path), "me") as session, trio.open_nursery() as nursery:
        seen: list[bool] = []

        async def program() -> None:
            async with connected(session.url) as (_, caller):
                report = await begin(caller, "another")
                assert report == await session.report()
                await lamp(caller, "on")
                seen.append(await lamp(caller, "state"))

        for _ in range(5):
            nursery.start_soon(program)
    assert seen == 5 * [True]


async def test_its_socket_is_for_its_user_only_and_gone_afterwards(tmp_path: Path) -> None:
    async with open_session(bench(tmp_path), "me") as session:
        assert session.directory.stat().st_mode & 0o777 == 0o700
        assert session.url == f"unix:{session.directory}/session.sock"
    assert not session.directory.exists()


async def test_the_environment_of_local_programs(tmp_path: Path) -> None:
    async with open_session(bench(tmp_path), "me@here", environ={"JMP_LEASE": "7"}) as session:
        environ = session.environment()
    assert environ["JMP_HOST"] == session.url
    assert (environ["JMP_EXPORTER"], environ["JMP_CLIENT"], environ["JMP_LEASE"]) == ("bench", "me@here", "7")


async def test_every_session_has_drivers_of_its_own(tmp_path: Path, journal: list[str]) -> None:
    config = bench(tmp_path)
    for _ in range(2):
        async with open_session(config, "me") as session, connected(session.url) as (_, caller):
            assert await lamp(caller, "state") is False
            await lamp(caller, "on")
    assert journal == ["open", "close", "open", "close"]


async def test_the_report(tmp_path: Path) -> None:
    config = bench(tmp_path, "description: For tests.\nmotd: Be kind.\n")
    async with open_session(config, "me") as session:
        report = await session.report()
    assert {name: value for name, value in report.items() if name != "tree"} == {
        "name": "bench",
        "labels": {"board": "lamp"},
        "description": "For tests.",
        "motd": "Be kind.",
        "version": jmp.__version__,
    }
    assert set(report["tree"]["children"]["lamp"]["methods"]) == {"on", "state", "count", "unplug", "wait", "echo"}


async def test_a_degraded_driver_is_told_and_the_others_work(tmp_path: Path) -> None:
    path = tmp_path / "bench.yaml"
    config = bench(tmp_path, export="lamp: {type: lamp}\n  bad: {type: broken}")
    assert config.path == path
    async with open_session(config, "me") as session, connected(session.url) as (_, caller):
        bad = (await begin(caller, "me"))["tree"]["children"]["bad"]
        assert (bad["state"], bad["reason"]) == ("degraded", "there is no such device: plug it in")
        await lamp(caller, "on")


async def test_states_now_and_whenever_they_change(tmp_path: Path) -> None:
    config = bench(tmp_path, export="lamp: {type: lamp}\n  alias: {ref: lamp}")
    async with (
        open_session(config, "me") as session,
        connected(session.url) as (_, caller),
        aclosing(caller.items(TARGET, "states", (), {})) as states,
    ):
        assert await anext(states) == {"lamp": ("ready", "")}
        with pytest.raises(DeviceError, match="lamp was lost: by accident"):
            await lamp(caller, "unplug", "by accident")
        assert await anext(states) == {"lamp": ("degraded", "by accident")}
        while (state := await anext(states)) != {"lamp": ("ready", "")}:
            assert state["lamp"][0] in ("opening", "degraded")


async def test_reset_from_afar(tmp_path: Path) -> None:
    async with open_session(bench(tmp_path), "me") as session, connected(session.url) as (_, caller):
        await lamp(caller, "on")
        await caller.call(TARGET, "reset", ("lamp",), {})
        assert await lamp(caller, "state") is False
        with pytest.raises(NotFound, match="there is no driver 'lamb' here \\(did you mean 'lamp'"):
            await caller.call(TARGET, "reset", ("lamb",), {})


async def test_what_a_session_does_not_answer(tmp_path: Path) -> None:
    async with open_session(bench(tmp_path), "me") as session, connected(session.url) as (_, caller):
        for method in ("resolve", "serve_link", "environment", "nothing"):
            with pytest.raises(NotFound, match="@session has no method"):
                await caller.call(TARGET, method, (), {})
        with pytest.raises(BadValue, match="expected str"):
            await caller.call(TARGET, "reset", (5,), {})
        with pytest.raises(NotFound, match="there is no driver '@lab' here"):
            await caller.call("@lab", "acquire", (), {})


async def test_drivers_of_packages_that_are_not_allowed_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "bench.yaml").write_text(
        "apiVersion: jmp/v1\nkind: Exporter\nmetadata: {name: bench}\n"
        "export: {power: {type: mock-power}, lamp: {type: lamp}}\n"
    )
    from jmp_drivers.power import MockPower

    drivers: dict[str, type[Driver]] = {"mock-power": MockPower, "lamp": Lamp}
    config = configuration.load(tmp_path / "bench.yaml", drivers)
    async with open_session(config, "me", packages=["jmp-drivers"]) as session, connected(session.url) as (_, caller):
        assert await caller.call("power", "state", (), {}) == "off"
        with pytest.raises(Refused, match="a policy does not allow drivers of no package"):
            await lamp(caller, "on")
    assert Lamp.journal == []


async def test_what_a_driver_does_not_take_any_more(tmp_path: Path) -> None:
    class Image(Driver):
        file: Path

        def __post_init__(self) -> None:
            if not self.file.exists():
                raise ConfigError(f"there is no file {self.file}")

    (tmp_path / "image").touch()
    (tmp_path / "bench.yaml").write_text(
        "apiVersion: jmp/v1\nkind: Exporter\nmetadata: {name: bench}\n"
        "export: {disk: {type: image, config: {file: image}}}\n"
    )
    config = configuration.load(tmp_path / "bench.yaml", {"image": Image})
    (tmp_path / "image").unlink()
    with pytest.raises(ConfigError, match=r"bench.yaml: export.disk.config: there is no file .*image"):
        async with open_session(config, "me"):
            pass


async def test_an_error_of_the_user_comes_out_after_all_is_closed(tmp_path: Path, journal: list[str]) -> None:
    async def use() -> None:
        async with open_session(bench(tmp_path), "me"):
            raise Busy("the user's own")

    with pytest.raises(Busy, match="own"):
        await use()
    assert journal == ["open", "close"]


async def test_cancelled_at_any_moment_it_leaves_nothing(tmp_path: Path, journal: list[str]) -> None:
    """At every checkpoint from before its beginning until after its end."""
    config = bench(tmp_path)
    directories: list[Path] = []
    steps = 0
    while len(directories) < 5:  # how many steps it takes to get there depends on threads
        steps += 1 + steps // 40
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel(steps: int, scope: trio.CancelScope) -> None:
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(cancel, steps, scope)
                async with open_session(config, "me") as session:
                    directories.append(session.directory)
                    await trio.sleep_forever()
        assert journal.count("open") == journal.count("close")
    assert not any(directory.exists() for directory in directories)
