"""Scripts around a session: what they are given, what becomes of their output, and of them when they fail or take too long."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from jmp.errors import LabError
from jmp.exporter.config import Hook
from jmp.exporter.hold import Hold
from jmp.exporter.hooks import HookFailed, run_hook
from jmp.exporter.session import open_session
from jmp.wire.records import Grant, Phase
from tests.fakes.exporters import Lamp, begin, bench, connected, exporting, only

ENVIRON = {"PATH": "/usr/bin:/bin", "JMP_HOOK": "beforeLease"}


@pytest.fixture(autouse=True)
def journal() -> Iterator[list[str]]:
    Lamp.journal.clear()
    yield Lamp.journal
    Lamp.journal.clear()


class Said:
    """What a hook prints."""

    def __init__(self) -> None:
        self.data = b""
        self.source = ""
        self._news = trio.lowlevel.ParkingLot()

    def take(self, source: str, data: bytes) -> None:
        self.source = source
        self.data += data
        self._news.unpark_all()

    async def line(self) -> str:
        while b"\n" not in self.data:
            await self._news.park()
        return self.data.partition(b"\n")[0].decode()


async def gone(pid: int) -> None:
    """Wait until a process has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    await trio.lowlevel.wait_readable(handle)
    os.close(handle)


# ---- one hook


async def test_a_script_gets_the_environment_and_its_output_is_shown() -> None:
    said = Said()
    script = 'echo "$JMP_HOOK"; echo to stderr >&2; cat; env | grep -c HOME'
    with pytest.raises(HookFailed, match="hook before failed with exit status 1"):
        await run_hook("before", Hook(script=script), ENVIRON, said.take)
    assert (said.source, said.data) == ("before", b"beforeLease\nto stderr\n0\n")


async def test_another_interpreter_and_a_file(tmp_path: Path) -> None:
    said = Said()
    await run_hook("h", Hook(script="print(6 * 7)", interpreter=sys.executable), ENVIRON, said.take)
    (tmp_path / "hook").write_text("echo a file\n")
    await run_hook("h", Hook(file=tmp_path / "hook"), ENVIRON, said.take)
    assert said.data == b"42\na file\n"


async def test_output_comes_as_it_is_printed() -> None:
    said = Said()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_hook, "h", Hook(script="echo first; sleep 1000"), ENVIRON, said.take)
        assert await said.line() == "first"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("first", [f"#!{sys.executable}", f"#!/usr/bin/env {os.path.basename(sys.executable)}"])
async def test_the_interpreter_is_found_in_the_first_line(tmp_path: Path, first: str) -> None:
    environ = {**ENVIRON, "PATH": f"{os.path.dirname(sys.executable)}:/usr/bin"}
    for indirect in (False, True):
        said = Said()
        text = f"{first}\nimport os\nprint(6 * 7, os.environ['JMP_HOOK'])\n"
        if indirect:
            (tmp_path / "hook").write_text(text)
        await run_hook("h", Hook(file=tmp_path / "hook") if indirect else Hook(script=text), environ, said.take)
        assert said.data == b"42 beforeLease\n"


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (Hook(script="exit 7"), "hook h failed with exit status 7"),
        (Hook(script="kill -9 $$"), "hook h failed with exit status -9"),
        (Hook(script="x", interpreter="/no/such"), "hook h cannot be run: /no/such: No such file or directory"),
    ],
)
async def test_failures(hook: Hook, said: str) -> None:
    with pytest.raises(HookFailed) as raised:
        await run_hook("h", hook, ENVIRON, Said().take)
    assert raised.value.message == said
    assert raised.value.hook is hook
    assert isinstance(raised.value, LabError)


async def test_one_that_takes_too_long_is_ended_with_all_that_it_started(mock_clock: trio.testing.MockClock) -> None:
    said = Said()
    hook = Hook(script="sleep 1000 & echo $!; wait", timeout=timedelta(minutes=2))
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            with pytest.raises(HookFailed, match="hook h did not end within 120 s"):
                await run_hook("h", hook, ENVIRON, said.take)

        nursery.start_soon(run)
        child = int(await said.line())
        mock_clock.jump(121)
    await gone(child)


async def test_one_that_does_not_want_to_end_is_killed(mock_clock: trio.testing.MockClock) -> None:
    said = Said()
    hook = Hook(script="trap '' TERM; echo $$; while :; do sleep 1000; done")
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            with pytest.raises(HookFailed, match="hook h did not end within 120 s"):
                await run_hook("h", hook, ENVIRON, said.take)

        nursery.start_soon(run)
        pid = int(await said.line())
        mock_clock.jump(120)
        await trio.testing.wait_all_tasks_blocked()  # it has been told to end, and does not
        mock_clock.jump(5)
    assert trio.current_time() == 125
    await gone(pid)


async def test_what_a_hook_leaves_in_the_background_ends_with_it() -> None:
    said = Said()
    await run_hook("h", Hook(script="sleep 1000 & echo $!"), ENVIRON, said.take)
    await gone(int(await said.line()))


async def test_a_cancelled_hook_is_ended() -> None:
    said = Said()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_hook, "h", Hook(script="echo $$; exec sleep 1000"), ENVIRON, said.take)
        pid = int(await said.line())
        nursery.cancel_scope.cancel()
    await gone(pid)


# ---- around a session


def hooks(before: str = "", after: str = "", policy: str = "warn") -> str:
    """The keys of the configuration."""
    lines = ["hooks:"]
    for name, script in (("beforeLease", before), ("afterLease", after)):
        if script:
            lines.append(f"  {name}: {{script: '{script}', onFailure: {policy}}}")
    return "\n".join(lines) + "\n"


async def test_hooks_run_while_the_drivers_are_open(tmp_path: Path, journal: list[str]) -> None:
    def say(source: str, data: bytes) -> None:
        journal.append(f"{source}: {data.decode().strip()}")

    script = 'echo "$JMP_HOOK of $JMP_CLIENT at $JMP_EXPORTER"'
    async with open_session(bench(tmp_path, hooks(script, script)), "me@here", output=say):
        journal.append("session")
    assert journal == [
        "open",
        "beforeLease: beforeLease of me@here at bench",
        "session",
        "afterLease: afterLease of me@here at bench",
        "close",
    ]


async def test_j_works_in_a_hook(tmp_path: Path) -> None:
    said = Said()
    async with open_session(bench(tmp_path, hooks("j lamp on && j lamp state")), "me", output=said.take) as session:
        assert said.data == b"true\n"
        driver = session.tree.find("lamp").driver
        assert isinstance(driver, Lamp)
        assert driver.lit


async def test_output_goes_to_the_log_if_to_nobody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with open_session(bench(tmp_path, hooks("echo one; echo two")), "me"):
        pass
    assert [record.getMessage() for record in caplog.records if "beforeLease" in record.getMessage()] == [
        "beforeLease: one",
        "beforeLease: two",
    ]


@pytest.mark.parametrize("policy", ["warn", "endLease", "exit"])
@pytest.mark.parametrize("which", ["beforeLease", "afterLease"])
async def test_what_a_failing_hook_ends(which: str, policy: str, tmp_path: Path, journal: list[str]) -> None:
    failing, fine = "echo bad; exit 3", "echo fine"
    before, after = (failing, fine) if which == "beforeLease" else (fine, failing)
    fatal = policy == "exit" or (which == "beforeLease" and policy == "endLease")
    said = Said()

    async def use() -> None:
        async with open_session(bench(tmp_path, hooks(before, after, policy)), "me", output=said.take):
            journal.append("session")

    if fatal:
        with pytest.raises(HookFailed, match=f"hook {which} failed with exit status 3"):
            await use()
    else:
        await use()
        assert f"hook {which} failed with exit status 3\n".encode() in said.data
    began = which == "afterLease" or policy == "warn"
    assert journal == ["open", *(["session"] if began else []), "close"]
    assert b"fine" in said.data


async def test_afterlease_runs_when_the_user_is_cancelled(tmp_path: Path, journal: list[str]) -> None:
    said = Said()
    with trio.CancelScope() as scope:
        async with open_session(bench(tmp_path, hooks(after="echo bye")), "me", output=said.take):
            scope.cancel()
            await trio.sleep_forever()
    assert (said.data, journal) == (b"bye\n", ["open", "close"])


async def test_onfailure_exit_ends_the_exporter(tmp_path: Path) -> None:
    async def serve() -> None:
        async with exporting(tmp_path, bench(tmp_path, hooks(after="exit 3", policy="exit"))) as (url, _):
            async with connected(url) as (_, caller):
                await begin(caller, "me")
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as raised:
        await serve()
    assert only(raised.value).message == "hook afterLease failed with exit status 3"


async def test_cleaning_up_after_a_restart_keeps_what_a_hook_failed_with(tmp_path: Path, journal: list[str]) -> None:
    hold = Hold(Grant(lease="1", client="me", duration=0.0, remaining=0.0), 1, lambda: None, "bench")
    await hold.settle(bench(tmp_path, hooks(after="exit 3", policy="exit")), "restarted")
    assert isinstance(hold.failure, HookFailed)
    assert (hold.phase, journal) == (Phase.IDLE, ["open", "close"])
