from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from jmp.errors import Busy, DeviceError, LabError, UsageError
from jmp_drivers.console import Hub

Client = trio.abc.HalfCloseableStream


@asynccontextmanager
async def attached(
    hub: Hub,
    sent: bytearray | None = None,
    *,
    replay: bool = False,
    write: bool = False,
    take_over: bool = False,
) -> AsyncIterator[Client]:
    """A client's end of a stream that the hub serves; what the client sends lands in `sent`."""
    ours, theirs = memory_stream_pair()

    async def send(data: bytes) -> None:
        assert sent is not None
        sent.extend(data)
        await trio.lowlevel.checkpoint()

    async def serve() -> None:
        await hub.serve(theirs, send, replay=replay, write=write, take_over=take_over)
        await theirs.aclose()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await wait_all_tasks_blocked()
            yield ours
            nursery.cancel_scope.cancel()


async def read(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        assert chunk, f"the stream ended after {bytes(data)!r}"
        data += chunk
    return bytes(data)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


async def test_two_readers_get_every_byte_and_a_late_one_the_ring_first() -> None:
    lines = [b"line %05d of the boot log\r\n" % number for number in range(10_000)]
    hub = Hub(ring=4096)
    got: list[bytes] = []

    async def take_all(stream: trio.abc.ReceiveStream) -> None:
        got.append(await read_all(stream))

    async with attached(hub) as one, attached(hub) as two, trio.open_nursery() as readers:
        readers.start_soon(take_all, one)
        readers.start_soon(take_all, two)
        for line in lines[:9_000]:
            hub.feed(line)
            await trio.lowlevel.checkpoint()
        async with attached(hub, replay=True) as late:
            readers.start_soon(take_all, late)
            for line in lines[9_000:]:
                hub.feed(line)
            hub.end()
            await wait_all_tasks_blocked()
    everything = b"".join(lines)
    assert sorted(map(len, got)) == sorted([len(everything)] * 2 + [4096 + len(b"".join(lines[9_000:]))])
    assert all(everything.endswith(each) for each in got)


async def test_without_replay_a_client_starts_at_its_attach_point() -> None:
    hub = Hub()
    hub.feed(b"before")
    async with attached(hub) as client:
        hub.feed(b"after")
        assert await read(client, 5) == b"after"


async def test_history_is_the_newest_ring_bytes() -> None:
    hub = Hub(ring=8)
    assert hub.history() == b""
    hub.feed(b"abc")
    assert hub.history() == b"abc"
    hub.feed(b"defghijkl")
    assert hub.history() == b"efghijkl"


async def test_a_slow_reader_widens_the_buffer_but_not_the_history() -> None:
    hub = Hub(ring=4)
    async with attached(hub) as slow:
        hub.feed(b"0123456789")
        assert hub.history() == b"6789"
        async with attached(hub, replay=True) as late:
            assert await read(late, 4) == b"6789"
        assert await read(slow, 10) == b"0123456789"


async def test_what_a_client_sends_reaches_the_device() -> None:
    sent = bytearray()
    async with attached(Hub(), sent, write=True) as client:
        await client.send_all(b"root\n")
        await wait_all_tasks_blocked()
        assert sent == b"root\n"


async def test_second_writer_is_refused_and_the_place_is_free_after_the_first_ones_end_of_input() -> None:
    hub = Hub()
    sent = bytearray()
    _, stream = memory_stream_pair()

    async def send(data: bytes) -> None:
        raise AssertionError(data)

    async with attached(hub, sent, write=True) as first:
        with pytest.raises(Busy, match="another client is writing to this console; attach read-only"):
            await hub.serve(stream, send, replay=False, write=True)
        with pytest.raises(Busy), hub.writing():
            pass
        async with attached(hub, write=False) as reader:
            hub.feed(b"for all")
            assert await read(reader, 7) == b"for all"
        await first.send_eof()
        await wait_all_tasks_blocked()
        async with attached(hub, sent, write=True) as second:
            await second.send_all(b"mine now")
            await wait_all_tasks_blocked()
            hub.feed(b"still here")
            assert await read(first, 17) == b"for allstill here"
    assert sent == b"mine now"
    with hub.writing():
        pass


async def test_who_takes_over_writes_and_the_former_writer_reads_on_until_it_sends() -> None:
    hub = Hub()
    sent = bytearray()
    with pytest.RaisesGroup(pytest.RaisesExc(Busy, match="another client has taken this console over")):
        async with attached(hub, sent, write=True) as former, attached(hub, sent, write=True, take_over=True) as writer:
            notice = b"\r\n[another client writes to this console now; you go on reading]\r\n"
            assert await read(former, len(notice)) == notice  # before anybody does anything
            await writer.send_all(b"mine")
            hub.feed(b"for all")
            assert await read(former, 7) == await read(writer, 7) == b"for all"
            assert sent == b"mine"
            await former.send_all(b"not any more")
            await trio.sleep_forever()
    assert sent == b"mine"


async def test_the_place_that_was_taken_over_stays_so_when_the_former_writer_leaves() -> None:
    hub = Hub()
    sent = bytearray()
    async with attached(hub, sent, write=True) as former, attached(hub, sent, write=True, take_over=True) as writer:
        await former.send_eof()
        await wait_all_tasks_blocked()
        with pytest.raises(Busy), hub.writing():
            pass
        await writer.send_eof()
        await wait_all_tasks_blocked()
        with hub.writing():
            pass


async def test_a_client_that_only_reads_cannot_take_over() -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(UsageError, match="has nothing to take over")):
        async with attached(Hub(), take_over=True):
            await trio.sleep_forever()


async def test_read_only_client_that_sends_is_told_so() -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(UsageError, match="attached to the console read-only")):
        async with attached(Hub(), write=False) as client:
            await client.send_all(b"x")
            await trio.sleep_forever()


async def test_the_device_failing_to_take_bytes_ends_the_client_with_that_error() -> None:
    ours, theirs = memory_stream_pair()

    async def send(data: bytes) -> None:
        raise DeviceError("it is gone")

    await ours.send_all(b"x")
    with trio.fail_after(60), pytest.raises(DeviceError, match="it is gone"):
        await Hub().serve(theirs, send, replay=True, write=True)


async def test_end_with_a_reason_delivers_the_rest_first() -> None:
    hub = Hub()
    ours, theirs = memory_stream_pair()
    failures: list[DeviceError] = []

    async def send(data: bytes) -> None:
        raise AssertionError(data)

    async def serve() -> None:
        with pytest.raises(DeviceError) as failure:
            await hub.serve(theirs, send, replay=True, write=False)
        failures.append(failure.value)
        await theirs.aclose()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await wait_all_tasks_blocked()
            hub.feed(b"last words")
            hub.end("the port was unplugged")
            hub.feed(b"a new life")
            assert await read_all(ours) == b"last words"
    assert [failure.message for failure in failures] == ["the port was unplugged"]
    assert hub.history() == b"last wordsa new life"


async def test_a_client_that_goes_away_is_forgotten() -> None:
    hub = Hub()
    async with attached(hub) as gone, attached(hub) as other:
        await gone.aclose()
        hub.feed(b"one")
        assert await read(other, 3) == b"one"
        await wait_all_tasks_blocked()
        hub.feed(b"two")
        assert await read(other, 3) == b"two"


async def test_a_reader_beyond_its_backlog_is_ended_alone_and_told_how_far_behind_it_was() -> None:
    hub = Hub(ring=1000, backlog=10_000)
    stuck, theirs = trio.testing.lockstep_stream_pair()
    failures: list[LabError] = []

    async def send(data: bytes) -> None:
        raise AssertionError(data)

    async def serve() -> None:
        with pytest.raises(LabError) as failure:
            await hub.serve(theirs, send, replay=True, write=False)
        failures.append(failure.value)

    async with attached(hub) as healthy, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await wait_all_tasks_blocked()
        hub.feed(b"z" * 100)  # taken at once, and then its send does not return
        await wait_all_tasks_blocked()
        for _ in range(12):
            hub.feed(b"z" * 1000)
            await wait_all_tasks_blocked()
        assert len(await read(healthy, 12_100)) == 12_100
    assert "was 12000 bytes behind" in failures[0].message
    await stuck.aclose()


@pytest.mark.parametrize("size", [1, 3, 100])
async def test_secrets_are_shown_and_logged_as_stars_however_they_come(tmp_path: Path, size: int) -> None:
    path = tmp_path / "console.log"
    hub = Hub(log=path, secrets=["hunter2", "hunter2-more", "huh"])
    said = b"key=hunter2-more hunter hunter2 hunhuh! hunter2"
    async with attached(hub) as client:
        for start in range(0, len(said), size):
            hub.feed(said[start : start + size])
        shown = b"key=*** hunter *** hun***! "
        assert await read(client, len(shown)) == shown
        assert hub.history() == path.read_bytes() == shown  # the last one may still become the longer one
        hub.feed(b"\n")
        assert await read(client, 4) == b"***\n"
        hub.end()


async def test_log_file_gets_all_output(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"earlier\n")
    hub = Hub(log=path)
    hub.feed(b"one\ntwo")
    hub.end()
    hub.feed(b" more\n")
    hub.end()
    assert path.read_bytes() == b"earlier\none\ntwo more\n"


async def test_log_file_with_timestamps_stamps_each_line_once(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    hub = Hub(log=path, timestamps=True)
    for piece in (b"on", b"e\r\ntwo\rstill two", b"\n", b"\n", b"three"):
        hub.feed(piece)
    hub.end()
    stamp = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z "
    assert re.fullmatch(
        stamp + rb"one\r\n" + stamp + rb"two\rstill two\n" + stamp + rb"\n" + stamp + b"three", path.read_bytes()
    )


@pytest.mark.parametrize(
    ("kept", "files"), [(2, {"": b"eeeeeeeeeeee", ".1": b"dddd", ".2": b"bbbbcccc"}), (0, {"": b"eeeeeeeeeeee"})]
)
async def test_log_file_that_is_full_makes_place_for_the_next(
    tmp_path: Path, kept: int, files: dict[str, bytes]
) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"a" * 8)  # of an earlier session
    hub = Hub(log=path, log_size=8, log_kept=kept)
    for piece in (b"bbbb", b"cccc", b"dddd", b"eeeeeeeeeeee"):
        hub.feed(piece)
    hub.end()
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {
        f"console.log{suffix}": content for suffix, content in files.items()
    }


async def test_log_file_that_cannot_be_written_is_an_error_at_open_and_a_warning_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(log=tmp_path / "missing" / "console.log")
    with pytest.raises(DeviceError, match=r"cannot write the console log .*missing.*: No such file or directory"):
        hub.open_log()
    hub.feed(b"a")
    hub.feed(b"b")
    assert hub.history() == b"ab"
    assert len(caplog.records) == 1
