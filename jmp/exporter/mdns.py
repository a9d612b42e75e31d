"""Services that devices tell of in their network: DNS-SD (RFC 6763) over multicast DNS (RFC 6762), the asking side.

Questions go out from a port of our own ("one-shot", RFC 6762 section 5.1), so answers come to us alone, and neither the machine's
own responder nor its port 5353 are in the way. `Search` is the conversation without I/O: answers in, questions out; `discover`
has it on every interface of the machine.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address

import trio

from jmp.driver.machine import Service
from jmp.errors import LabError

_GROUP = ("224.0.0.251", 5353)
_A, _PTR, _TXT, _SRV = 1, 12, 16, 33
_IN, _TO_US = 1, 0x8000  # class; with the bit: answer to us, not to all
_POINTER = 0xC0
_MOST = 1000  # of what is kept of each kind: no network has more, and who sends more means no good
_LONGEST = 9000  # bytes of an answer (RFC 6762, section 17)
_AGAIN = (0.0, 0.5, 1.5)  # seconds at which what is still open is asked: an answer may be lost, and sleepers wake
_IFF = 0x1001  # linux/if.h: up, and can multicast
_GET_FLAGS = 0x8913  # linux/sockios.h: SIOCGIFFLAGS

Name = tuple[str, ...]
Record = tuple[Name, int, object]
"""Name, type and value: a Name for PTR, (port, Name) for SRV, strings for TXT, an address for A."""


def question(names: Iterable[tuple[Name, int]]) -> bytes:
    """A message that asks for records."""
    asked = [(_encode(name), kind) for name, kind in names]
    head = struct.pack("!6H", 0, 0, len(asked), 0, 0, 0)
    return head + b"".join(name + struct.pack("!2H", kind, _IN | _TO_US) for name, kind in asked)


def answers(message: bytes) -> list[Record]:
    """The records of an answer that are known here. Raises ValueError for what is no answer."""
    if len(message) < 12:
        raise ValueError("it is too short")
    _, flags, questions, *counts = struct.unpack_from("!6H", message)
    if not flags & 0x8000:
        raise ValueError("it is a question")
    at = 12
    found: list[Record] = []
    try:
        for _ in range(questions):
            at = _decode(message, at)[1] + 4
        for _ in range(sum(counts)):
            name, at = _decode(message, at)
            kind, _, _, length = struct.unpack_from("!2HIH", message, at)
            at += 10
            if at + length > len(message):
                raise ValueError("a record does not fit")
            if kind == _PTR:
                found.append((name, kind, _decode(message, at)[0]))
            elif kind == _SRV:
                port = struct.unpack_from("!H", message, at + 4)[0]
                found.append((name, kind, (port, _decode(message, at + 6)[0])))
            elif kind == _TXT:
                found.append((name, kind, list(_strings(message[at : at + length]))))
            elif kind == _A and length == 4:
                found.append((name, kind, str(IPv4Address(message[at : at + 4]))))
            at += length
    except struct.error as error:
        raise ValueError("it ends too early") from error
    return found


def _encode(name: Name) -> bytes:
    labels = [label.encode(errors="surrogateescape") for label in name]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _decode(message: bytes, at: int) -> tuple[Name, int]:
    """A name, whose end may stand elsewhere in the message, and where it ends here. Raises ValueError."""
    labels: list[str] = []
    end = steps = 0
    while True:
        if at >= len(message):
            raise ValueError("a name does not end")
        length = message[at]
        if length & _POINTER == _POINTER:
            if at + 1 >= len(message) or (steps := steps + 1) > 64:
                raise ValueError("a name leads nowhere")
            end = end or at + 2
            at = (length & ~_POINTER) << 8 | message[at + 1]
        elif length == 0:
            return tuple(labels), end or at + 1
        else:
            if length > 63 or len(labels) > 127:
                raise ValueError("a name is too long")
            labels.append(message[at + 1 : at + 1 + length].decode(errors="surrogateescape"))
            at += 1 + length


def _strings(data: bytes) -> Iterator[str]:
    at = 0
    while at < len(data):
        yield data[at + 1 : at + 1 + data[at]].decode(errors="replace")
        at += 1 + data[at]


class Search:
    """For the instances of some types of services, such as ``_ssh._tcp``."""

    def __init__(self, types: Collection[str]) -> None:
        self._types = {(*type_.split("."), "local") for type_ in types}
        self._instances: set[Name] = set()
        self._servers: dict[Name, tuple[int, Name]] = {}
        self._texts: dict[Name, list[str]] = {}
        self._addresses: dict[Name, str] = {}
        self._asked: set[tuple[Name, int]] = set()  # since the last `open`

    def take(self, message: bytes) -> bool:
        """What somebody has answered; whether there is something new. What nobody has asked for, or is none, is left out."""
        try:
            records = answers(message)
        except ValueError:
            return False
        before = self._size()
        if before > 4 * _MOST:
            return False
        for name, kind, value in records:
            name = tuple(label.lower() for label in name) if kind in (_PTR, _A) else name
            match kind, value:
                case 12, tuple() if name in self._types and value[1:] and _lower(value[1:]) == name:
                    self._instances.add(value)
                case 33, (int(port), tuple(host)):
                    self._servers[name] = (port, host)
                case 16, list(texts):
                    self._texts[name] = texts
                case 1, str(address):
                    self._addresses.setdefault(name, address)
        return self._size() > before

    def _size(self) -> int:
        return len(self._instances) + len(self._servers) + len(self._texts) + len(self._addresses)

    def open(self) -> list[tuple[Name, int]]:
        """What is to be asked for now: the types, and what is not known of what has been found."""
        self._asked.clear()
        return [(name, _PTR) for name in sorted(self._types)] + self.missing()

    def missing(self) -> list[tuple[Name, int]]:
        """Of what has been found, what is not known and has not been asked for since `open`."""
        asked: list[tuple[Name, int]] = []
        for instance in sorted(self._instances):
            asked += [(instance, _SRV)] if instance not in self._servers else []
            asked += [(instance, _TXT)] if instance not in self._texts else []
            if instance in self._servers and _lower(self._servers[instance][1]) not in self._addresses:
                asked.append((self._servers[instance][1], _A))
        fresh = [each for each in asked if each not in self._asked]
        self._asked.update(fresh)
        return fresh

    def services(self) -> list[Service]:
        """Those of which enough is known, in the order of their types and names."""
        found = []
        for instance in sorted(self._instances):
            port, host = self._servers.get(instance, (0, ()))
            address = self._addresses.get(_lower(host))
            if address is not None:
                pairs = [text.partition("=") for text in self._texts.get(instance, []) if text]
                known = {key.lower(): _shown(value) for key, _, value in reversed(pairs)}  # the first one counts
                names = (_shown(instance[0]), _shown(".".join(host)))
                found.append(Service(".".join(_lower(instance[1:3])), *names, address, port, known))
        return sorted(found, key=lambda each: (each.type, each.name))


def _shown(text: str) -> str:
    """As people may see it: a device in the network can send anything."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _lower(name: Name) -> Name:
    return tuple(label.lower() for label in name)


async def discover(types: Collection[str], seconds: float) -> list[Service]:
    """The services of these types in all networks that the machine is in. Raises `LabError` if it is in none."""
    search = Search(types)
    with ExitStack() as stack:
        sockets = [stack.enter_context(each) for each in _sockets()]
        if not sockets:
            raise LabError("this machine is in no network that can be asked (multicast)")
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for each in sockets:
                    nursery.start_soon(_listen, each, search)
                waited = 0.0
                for due in _AGAIN:
                    await trio.sleep(due - waited)
                    waited = due
                    for each in sockets:
                        await _ask(each, search.open())
    return search.services()


async def _listen(asking: trio.socket.SocketType, search: Search) -> None:
    while True:
        with suppress(OSError):  # of an interface that has gone, or a host that refuses: others may answer
            message = await asking.recv(_LONGEST)
            if search.take(message) and (missing := search.missing()):
                await _ask(asking, missing)


async def _ask(asking: trio.socket.SocketType, names: list[tuple[Name, int]]) -> None:
    for each in names:  # one by one: an answer to us alone has 512 bytes, and what does not fit is left out
        with suppress(OSError):
            await asking.sendto(question([each]), _GROUP)


def _sockets() -> Iterator[trio.socket.SocketType]:
    """One for each interface, from which it asks."""
    for index, name in socket.if_nameindex():
        asking = trio.socket.from_stdlib_socket(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        try:
            request = fcntl.ioctl(asking.fileno(), _GET_FLAGS, struct.pack("16sH14x", name.encode(), 0))
            if struct.unpack_from("16xH", request)[0] & _IFF != _IFF:
                raise OSError("it is down, or knows no multicast")
            asking.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", bytes(4), bytes(4), index)
            )
            asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        except OSError:
            asking.close()
        else:
            yield asking
