"""``jmp.connect`` as users write it, blocking and under Trio, with exporters that are processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path

import pytest
import trio

import jmp
from jmp.errors import Busy, ConfigError, JmpError, LabError, LinkLost, Timeout, UsageError
from tests.fakes.lab import Program
from tests.fakes.sessions import shell_session

BENCH = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: bench, labels: {board: virtual}}
export:
  board: {type: virtual-board, config: {boot_time: 0}}
  power: {ref: board.power}
  console: {ref: board.console}
  spare-power: {type: mock-power}
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a session that others may use too."""
    with shell_session(tmp_path_factory.mktemp("session"), BENCH) as environment:
        yield environment["JMP_HOST"]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exporter's configuration; nothing in the environment is about jmp."""
    for name in list(os.environ):
        if name.startswith(("JMP_", "JUMPSTARTER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = tmp_path / "bench.yaml"
    path.write_text(BENCH)
    return path


@pytest.fixture
def served(bench: Path) -> Iterator[str]:
    """The URL of an exporter that listens."""
    url = f"unix:{bench.parent}/listening.sock"
    environment = dict(os.environ)
    with Program(["exporter", "serve", str(bench), "--listen", url], environment, bench.parent) as exporter:
        exporter.until("jmp shell --connect")
        yield url


@contextmanager
def farewell(bench: Path) -> Iterator[Callable[[], None]]:
    """Lets this exporter tell when a session is over; gives what waits until then, and until its process is gone."""
    fifo = bench.parent / "over"
    os.mkfifo(fifo)
    bench.write_text(f"{bench.read_text()}hooks: {{afterLease: {{script: echo $PPID > {fifo}}}}}\n")
    told = os.open(fifo, os.O_RDWR)

    def wait() -> None:
        assert select.select([told], [], [], 60)[0], "the session is not over"
        with suppress(ProcessLookupError):
            process = os.pidfd_open(int(os.read(told, 100)))
            try:
                assert select.select([process], [], [], 60)[0], "its process is still there"
            finally:
                os.close(process)

    try:
        yield wait
    finally:
        os.close(told)


# ---- where to


@pytest.mark.parametrize("variable", ["JMP_HOST", "JUMPSTARTER_HOST"])
def test_the_session_around_is_found(bench: Path, session: str, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, session)
    with jmp.connect() as dut:
        assert dut.info["name"] == "bench"
        assert dut.info["labels"] == {"board": "virtual"}


async def test_the_session_around_is_found_under_trio(session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMP_HOST", session)
    with trio.fail_after(60):
        async with jmp.connect() as dut:
            await dut.spare_power.on()
            assert await dut.spare_power.state() == "on"


def test_there_is_no_session(bench: Path) -> None:
    with pytest.raises(
        UsageError, match="no session here: run this in `jmp shell`, or name a url, an exporter, a selector or a lease"
    ):
        jmp.connect()
    with pytest.raises(UsageError, match="not both"):
        jmp.connect("unix:/nowhere", exporter=bench)


def test_an_exporter_of_ones_own_ends_with_the_block(bench: Path) -> None:
    with farewell(bench) as wait_gone:
        with jmp.connect(exporter=bench) as dut:
            dut.power.on()
            assert dut.power.state() == "on"
        wait_gone()


async def test_an_exporter_of_ones_own_under_trio(bench: Path) -> None:
    with trio.fail_after(60):
        async with jmp.connect(exporter=bench) as dut:
            assert await dut.power.state() == "off"


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (None, UsageError, "there is no"),
        (BENCH.replace("mock-power", "mock-powr"), ConfigError, "mock-power"),
        ("hooks: {beforeLease: {script: exit 3, onFailure: endLease}}\n" + BENCH, LabError, "beforeLease"),
    ],
)
async def test_an_exporter_of_ones_own_that_does_not_start(
    bench: Path, text: str | None, kind: type[JmpError], message: str
) -> None:
    if text is None:
        bench.unlink()
    else:
        bench.write_text(text)
    with pytest.raises(kind, match=message) as blocking, jmp.connect(exporter=bench):
        pass
    with pytest.raises(type(blocking.value), match=message):
        async with jmp.connect(exporter=bench):
            pass


def test_an_exporter_that_is_served_already_is_used_and_not_started_twice(bench: Path) -> None:
    (bench.parent / "config/jmp/exporters").mkdir(parents=True)
    bench.rename(bench.parent / "config/jmp/exporters/bench.yaml")
    environment = {**os.environ, "XDG_CONFIG_HOME": str(bench.parent / "config")}
    code = "import jmp\nwith jmp.connect(exporter='bench'): print('mine')"
    with Program(["exporter", "serve", "bench"], environment, bench.parent) as exporter:
        exporter.until("jmp shell")
        with jmp.connect(f"unix:{bench.parent}/jmp/bench.sock"):
            taken = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
            )
            assert "Busy: bench is in use by" in taken.stderr
        assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False).returncode == 0


# ---- who else


def test_a_device_in_use(served: str) -> None:
    with jmp.connect(served):
        with pytest.raises(Busy, match="bench is in use by") as error, jmp.connect(served):
            pass
        assert error.value.exit_code == 75
        with pytest.raises(Busy), jmp.connect(served, wait=0.05):
            pass
    with jmp.connect(served, wait=30) as dut:  # the end of a session may take a moment
        assert dut.power.state() == "off"


async def test_waiting_for_a_device(served: str) -> None:
    order = []

    async def second(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        async with jmp.connect(served, wait=None):
            order.append("second")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery, jmp.connect(served) as dut:
            await nursery.start(second)
            await dut.power.cycle(wait=0)
            order.append("first")
    assert order == ["first", "second"]


def test_two_processes_in_one_session(session: str) -> None:
    code = "import jmp\nwith jmp.connect() as dut: dut.spare_power.on(); print(dut.spare_power.state())"
    with jmp.connect(session) as dut:
        dut.spare_power.off()
        environment = {**os.environ, "JMP_HOST": session}
        assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "on\n"
        assert dut.spare_power.state() == "on"


def test_threads_share_a_connection(session: str) -> None:
    with jmp.connect(session) as dut:
        slow = threading.Thread(target=dut.spare_power.cycle, kwargs={"wait": 0.2})
        slow.start()
        assert [dut.power.state() for _ in range(20)]
        assert slow.is_alive()
        slow.join(60)
        assert dut.spare_power.state() == "on"


def test_a_fork_leaves_the_connection_to_its_parent(session: str) -> None:
    with jmp.connect(session) as dut, dut.console.connect(write=False):
        reading, writing = os.pipe()
        if not (child := os.fork()):
            try:
                try:
                    dut.power.state()
                except LinkLost as error:
                    os.write(writing, str(error).encode())
                with jmp.connect(session) as own:
                    os.write(writing, f"; here it is {own.spare_power.state()}".encode())
            except BaseException as error:  # noqa: BLE001  # whatever it is, this process is no second test run
                os.write(writing, f"; but {error!r}".encode())
            finally:
                os._exit(0)
        os.close(writing)
        assert os.waitpid(child, 0)[1] == 0
        with os.fdopen(reading) as told:
            said = told.read()
        assert "belongs to the process that made it: after a fork, connect again; here it is o" in said
        dut.spare_power.on()
        assert dut.spare_power.state() == "on"


# ---- the end


def test_after_the_end(session: str) -> None:
    with jmp.connect(session) as dut:
        power = dut.power
        power.off()
    with pytest.raises(LinkLost, match="the link was closed on this side"):
        power.state()


def test_the_exporter_goes(bench: Path) -> None:
    url = f"unix:{bench.parent}/listening.sock"
    with Program(["exporter", "serve", str(bench), "--listen", url], dict(os.environ), bench.parent) as exporter:
        exporter.until("jmp shell --connect")
        with jmp.connect(url) as dut:
            exporter.process.kill()
            with pytest.raises(LinkLost, match=r"the link was lost during board\.power\.cycle") as error:
                dut.power.cycle(wait=60)
    assert error.value.exit_code == 69


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_program_that_is_ended_leaves_nothing(bench: Path, number: int) -> None:
    (bench.parent / "tmp").mkdir()
    code = (
        "import jmp, sys\n"
        f"with jmp.connect(exporter={str(bench)!r}) as dut:\n"
        "  try: print('ready', flush=True); dut.power.cycle(wait=60)\n"
        "  finally: dut.power.off(); print('in order', flush=True)\n"
    )
    environment = {**os.environ, "TMPDIR": str(bench.parent / "tmp")}
    with (
        farewell(bench) as wait_gone,
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as program,
    ):
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            os.killpg(program.pid, number)  # as a terminal does it: all that runs in it
            rest, _ = program.communicate(timeout=60)
        finally:
            program.kill()
        wait_gone()
    assert rest == ("in order\n" if number == signal.SIGINT else "")
    # What a killed program cannot remove is its own directory, with the session's log; the session's is gone.
    left = [path.name for path in (bench.parent / "tmp").glob("*/*")]
    assert left == ([] if number == signal.SIGINT else ["session.log"])


# ---- calls


def test_deadlines(session: str) -> None:
    with jmp.connect(session) as dut:
        with pytest.raises(Timeout, match=r"spare-power.cycle did not finish") as error, jmp.fail_after(0.05):
            dut.spare_power.cycle(wait=60)
        assert error.value.exit_code == 124
        assert dut.spare_power.state() == "off", "cancelled half-way, at the exporter too"


async def test_deadlines_under_trio(session: str) -> None:
    with trio.fail_after(60):
        async with jmp.connect(session) as dut:
            with trio.move_on_after(0.05) as scope:
                await dut.spare_power.cycle(wait=60)
            assert scope.cancelled_caught
            assert await dut.spare_power.state() == "off"


def test_names_and_help(session: str, capsys: pytest.CaptureFixture[str]) -> None:
    with jmp.connect(session) as dut:
        assert repr(dut) == "<Device bench>"
        assert repr(dut.power) == "<DriverClient board.power>"
        assert {"power", "console", "info", "reset", "states"} <= set(dir(dut))
        assert {"on", "off", "cycle", "state"} <= set(dir(dut.power))
        assert repr(dut.power.cycle) == "<method board.power.cycle(wait: float = 1.0)>"
        assert dut.power.cycle.__doc__.startswith("cycle(wait: float = 1.0)\n\nSwitch off, wait")
        with pytest.raises(
            AttributeError, match=r"the device has no method or driver 'powr' \(did you mean 'power'\?\)"
        ):
            _ = dut.powr
        with pytest.raises(AttributeError) as error:
            _ = dut.board.power.nope
        sys.__excepthook__(error.type, error.value, None)
        said = "AttributeError: board.power has no method or driver 'nope' (known: cycle, off, on, state)\n"
        assert capsys.readouterr().err.endswith(said)  # Python itself would know `_node`
        with pytest.raises(AttributeError, match=r"board\.power has no method or driver 'onn'"):
            dut.power.onn()
        with pytest.raises(UsageError, match="wait"):
            dut.power.cycle(wait="long")
        with pytest.raises(UsageError, match="fast"):
            dut.power.cycle(fast=True)


def test_resetting_and_states(session: str) -> None:
    with jmp.connect(session) as dut:
        states = dut.states()
        assert next(iter(states))["board.power"] == ("ready", "")
        dut.reset()
        dut.reset("board")
        with pytest.raises(JmpError, match="nothing"):
            dut.reset("nothing")


# ---- exceptions under Trio


async def test_what_goes_wrong_comes_without_groups(session: str) -> None:
    with trio.fail_after(60):
        with pytest.raises(LabError, match="cannot reach unix:/nowhere"):
            async with jmp.connect("unix:/nowhere"):
                pass
        with pytest.raises(UsageError):
            async with jmp.connect(session) as dut:
                await dut.power.cycle(wait="long")
        problem = ValueError("the block's own")
        with pytest.raises(ValueError, match="the block's own") as caught:
            async with jmp.connect(session):
                raise problem
        assert caught.value is problem
        assert caught.value.__context__ is None


async def test_groups_of_the_block_stay_as_they_are(session: str) -> None:
    group = ExceptionGroup("mine", [ValueError()])
    with trio.fail_after(60), pytest.raises(ExceptionGroup) as caught:
        async with jmp.connect(session):
            raise group
    assert caught.value is group


async def test_leaving_early_by_cancellation(session: str) -> None:
    with trio.fail_after(60), trio.move_on_after(0.05) as scope:
        async with jmp.connect(session) as dut, aclosing(dut.states()) as states:
            async for _ in states:
                pass
    assert scope.cancelled_caught
