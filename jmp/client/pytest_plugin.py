"""pytest: the connected device as a fixture. Loaded by every pytest run of its users, so it imports next to nothing.

Inside ``jmp shell`` the session is found by itself. Elsewhere a session is made for the run, each pytest-xdist worker its own:
of an exporter (``--jmp-exporter``), of one that listens (``--jmp-url``), of a leased one (``--jmp-selector``). The manual is
``docs/pytest.md``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack, asynccontextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

if TYPE_CHECKING:
    from types import TracebackType

    from jmp.client.recording import Recording, Section


class Way(NamedTuple):
    """One way to get a device: an option of pytest, its ini key and variable, and what it is for ``jmp shell``."""

    name: str
    metavar: str
    help: str
    shell: str
    variable: str = ""

    @property
    def option(self) -> str:
        return f"--jmp-{self.name}"

    @property
    def key(self) -> str:
        return f"jmp_{self.name}"


WAYS: Final = (
    Way("exporter", "NAME|FILE", "Use the device of this exporter, started for the run.", "--exporter", "JMP_EXPORTER"),
    Way("url", "URL", "Use the device of the exporter that listens there.", "--connect"),
    Way("selector", "SELECTOR", "Lease a device of the lab with these labels for the run.", "--selector"),
    Way("lease", "ID", "Use the device of this lease.", "--lease", "JMP_LEASE"),
)
RESET: Final = "--jmp-reset"
AROUND: Final = ("JMP_HOST", "JUMPSTARTER_HOST")
"""Where the session is that this run is in; as in :mod:`jmp.environment`, which costs an import."""

_recording: pytest.StashKey[Recording] = pytest.StashKey()


# ---- which device


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jmp", "device under test")
    for way in WAYS:
        group.addoption(way.option, metavar=way.metavar, help=way.help)
        parser.addini(way.key, f"As {way.option}.", default="")
    group.addoption(RESET, action="store_true", default=None, help="Reset the device's drivers before each test.")
    parser.addini("jmp_reset", f"As {RESET}.", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    given = [way.option for way in WAYS if config.getoption(way.option)]
    if len(given) > 1:
        raise pytest.UsageError(f"{' and '.join(given)}: a run uses one device, so give one of them")


def pytest_report_header(config: pytest.Config) -> str | None:
    chosen = _chosen(config)
    return f"jmp: {chosen[1]}" if chosen else None


def _chosen(config: pytest.Config) -> tuple[str, str] | None:
    """How ``jmp shell`` gets the device and what it is; ``("", URL)`` for the session around this run, None without any.

    An option goes before the session around, that before the environment, and the ini file comes last.
    """
    for way in WAYS:
        if value := config.getoption(way.option):
            return way.shell, value
    for variable in AROUND:
        if url := os.environ.get(variable):
            return ("--connect" if url.startswith(("ws:", "wss:")) else ""), url
    for way in WAYS:
        if value := os.environ.get(way.variable):
            return way.shell, value
    for way in WAYS:
        if value := config.getini(way.key):
            return way.shell, _beside_ini(config, value) if way.name == "exporter" else value
    return None


def _beside_ini(config: pytest.Config, value: str) -> str:
    """A file that the ini file names is looked for beside it, wherever pytest runs."""
    beside = config.inipath.parent / value if config.inipath is not None else Path(value)
    return str(beside) if beside.is_file() else value


# ---- the fixtures


@pytest.fixture(scope="session")
def dut_session(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The connected device, blocking, for fixtures that last longer than one test."""
    import jmp
    from jmp.client.local import session_process
    from jmp.client.recording import Recording
    from jmp.errors import JmpError

    chosen = _chosen(request.config)
    if chosen is None:
        pytest.fail(
            "jmp: there is no device here: run pytest in `jmp shell`,"
            " or give --jmp-exporter NAME|FILE, --jmp-url URL, --jmp-selector SELECTOR, or one of them in the ini file",
            pytrace=False,
        )
    option, value = chosen
    recording = Recording()
    with ExitStack() as stack:
        try:
            if option:
                own = stack.enter_context(session_process(option, value))
                environ = stack.enter_context(pytest.MonkeyPatch.context())
                for name, content in own.environment.items():  # so that tests can start programs that use the device
                    environ.setenv(name, content)
            stack.enter_context(recording.listening())
            device = stack.enter_context(jmp.connect(own.url if option else value))
        except JmpError as error:
            raise pytest.fail.Exception(f"jmp: {error.message}", pytrace=False) from None
        recording.attach(device)
        request.config.stash[_recording] = recording
        stack.callback(request.config.stash.__delitem__, _recording)
        yield device


@pytest.fixture
def dut(dut_session: Any, request: pytest.FixtureRequest) -> Any:
    """The connected device, blocking: its drivers are attributes (``dut.power.on()``)."""
    if _resets(request.config):
        dut_session.reset()
    return dut_session


@pytest.fixture
async def dut_async(dut_session: Any, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """The connected device under Trio, for ``async def`` tests (``await dut_async.power.on()``)."""
    async with _connected(request) as device:
        yield device


@asynccontextmanager
async def _connected(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A connection of its own to the session that ``dut_session`` uses."""
    import jmp

    async with jmp.connect() as device:
        if _resets(request.config) and "dut" not in request.fixturenames:
            await device.reset()
        yield device


def _resets(config: pytest.Config) -> bool:
    chosen = config.getoption(RESET)
    return bool(config.getini("jmp_reset") if chosen is None else chosen)


# ---- async tests without pytest-trio


class _Later:
    """Stands for ``dut_async`` until the test runs."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.request = request


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> object | None:
    if fixturedef.argname != "dut_async" or fixturedef.func.__module__ != __name__:
        return None
    if not inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        pytest.fail("jmp: dut_async is for `async def` tests; in this one use dut", pytrace=False)
    if request.config.pluginmanager.hasplugin("trio") and request.node.get_closest_marker("trio"):
        return None  # pytest-trio sees to it, and to other fixtures that use it
    request.getfixturevalue("dut_session")
    later = _Later(request)
    fixturedef.cached_result = (later, getattr(request, "param", None), None)
    return later


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    later = pyfuncitem.funcargs.get("dut_async")
    if not isinstance(later, _Later):
        return None
    import outcome
    import trio

    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def run() -> None:
        async with _connected(later.request) as device:
            # What the test raises is reported as it is, without what the connection's own end would make of it.
            ended.append(await outcome.acapture(pyfuncitem.obj, **(arguments | {"dut_async": device})))

    ended: list[outcome.Outcome[None]] = []
    trio.run(run)
    ended.pop().unwrap()
    return True


# ---- reports


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    if (recording := item.config.stash.get(_recording, None)) is not None:
        recording.begin(ask="dut_session" in getattr(item, "fixturenames", ()))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    recording = item.config.stash.get(_recording, None)
    if recording is None:
        return (yield)
    error = call.excinfo.value if call.excinfo is not None else None
    if error is not None and not item.config.getoption("fulltrace"):
        _shorten(error)
    report = yield
    if report.failed:
        sections = recording.take()
        if remote := getattr(error, "remote_traceback", None):
            sections.insert(0, ("jmp driver's traceback", remote.rstrip()))
        _attach(report, sections)
    elif report.when == "call" and report.passed and {"A", "P"} & set(item.config.getoption("reportchars") or ""):
        report.sections += recording.take()
    return report


def _attach(report: pytest.TestReport, sections: list[Section]) -> None:
    """Where terminals, JUnit files and xdist find it: with the failure itself if that has room for it."""
    add = getattr(report.longrepr, "addsection", None)
    if add is None:
        report.sections += sections
        return
    for title, text in sections:
        add(title, text)


def _shorten(error: BaseException) -> None:
    """Let the traceback of an error that jmp raises end where jmp was called: with the user's own last line."""
    import contextlib

    import pexpect

    import jmp
    from jmp.errors import JmpError

    def within(frame: TracebackType, *files: str | None) -> bool:
        return frame.tb_frame.f_code.co_filename.startswith(tuple(file for file in files if file))

    ours, pexpects = os.path.dirname(jmp.__file__), os.path.dirname(pexpect.__file__)
    frames: list[TracebackType] = []
    following = error.__traceback__
    while following is not None:
        frames.append(following)
        following = following.tb_next
    inner = list(takewhile(lambda frame: within(frame, ours, pexpects, contextlib.__file__), reversed(frames)))
    raised_by_us = isinstance(error, JmpError) or (
        isinstance(error, AttributeError) and bool(inner) and inner[0].tb_frame.f_code.co_name == "__getattr__"
    )
    if not raised_by_us or len(inner) == len(frames) or not any(within(frame, ours) for frame in inner):
        return
    frames[-len(inner) - 1].tb_next = None
    if isinstance(error.__cause__, JmpError):  # the same, as the link saw it
        error.__cause__, error.__suppress_context__ = None, True
