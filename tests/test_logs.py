"""What a server's log looks like."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context

import pytest
import trio

from jmp import logs

SUBJECT = logs.subject_of("l7", "alice", "red", ["ci", "nightly"], {"job": "5", "empty": "", "lease": "a lie"})


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], io.StringIO]]:
    """Begins a log of this format; what it has said."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def begin(form: str) -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        root.handlers[:] = []
        logs.log_to_stderr("info", form)
        return stream

    yield begin
    root.handlers[:] = before
    root.setLevel(level)


def test_lines_for_people_say_what_they_are_about(said: Callable[[str], io.StringIO]) -> None:
    stream = said("text")
    log = logging.getLogger("jmp.exporter.power")
    with logs.about(SUBJECT):
        log.warning("lease l7 of %s begins", "alice")
    log.info("idle")
    log.debug("never")
    first, second = stream.getvalue().splitlines()
    assert re.sub(r"^[-0-9]+ [:,0-9]+ ", "", first) == (
        "WARNING jmp.exporter.power: lease l7 of alice begins job=5 exporter=red tags=ci,nightly"
    )
    assert second.endswith("INFO jmp.exporter.power: idle")


def test_lines_for_machines_are_objects(said: Callable[[str], io.StringIO]) -> None:
    stream = said("json")
    log = logging.getLogger("jmp.exporter")
    with logs.about(SUBJECT):
        try:
            raise ValueError("two\nlines")
        except ValueError:
            log.exception("it failed")
    line = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert "ValueError: two\nlines" in line.pop("exception")
    assert line == {
        "level": "error",
        "logger": "jmp.exporter",
        "message": "it failed",
        "lease": "l7",
        "client": "alice",
        "exporter": "red",
        "tags": "ci,nightly",
        "job": "5",
    }


async def test_tasks_and_threads_that_are_started_in_it_are_about_it_and_hear_of_changes(
    said: Callable[[str], io.StringIO],
) -> None:
    stream = said("json")
    subject = dict(SUBJECT)
    with logs.about(subject):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, logging.info, "from a thread")
        thread = threading.Thread(target=copy_context().run, args=(logging.info, "from another"))
        subject["client"] = "bob"
        thread.start()
        thread.join()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["message"], line["client"]) for line in lines] == [
        ("from a thread", "alice"),
        ("from another", "bob"),
    ]
