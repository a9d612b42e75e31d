"""What reports of failing tests say of calls."""

from __future__ import annotations

from jmp.client import calls
from jmp.client.interfaces import client_class
from jmp.driver import serve
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
