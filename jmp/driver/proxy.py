"""The generic client of a driver, made from the report: a driver needs no client code of its own.

Everything here is written asynchronously and waits for nothing but its :class:`Backend`. With a backend that blocks, such code
never suspends, so :class:`Blocking` can offer all of it, and client classes built on it, as plain methods with the same names.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from types import CoroutineType, TracebackType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, overload

from jmp.driver.schema import Parameter, describe, did_you_mean
from jmp.errors import ProtocolViolation
from jmp.rpc.messages import Kind

T = TypeVar("T")


class ByteStream(Protocol):
    """What a byte stream of a method offers, a Trio stream or one that blocks.

    One that was opened ``ahead`` may be used before the method has begun: what is sent goes out behind the request. That it is
    refused is raised by what is done with it, or by the end of its block.
    """

    @property
    def opened(self) -> bool: ...
    async def wait_opened(self) -> None: ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...
    async def receive_some(self, max_bytes: int | None = None) -> bytes: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...


class Backend(Protocol):
    """How a client reaches its session: :class:`jmp.rpc.call.Caller` or :class:`jmp.rpc.blocking.BlockingCaller`."""

    async def call(self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a unary method."""

    def items(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """The items of a streaming method."""

    def open(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, ahead: bool = False
    ) -> AbstractAsyncContextManager[ByteStream]:
        """A byte stream of a method; ``ahead``: for a block that need not wait until that has begun."""

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run local work that blocks (reading a file, say) where it may."""


class Node:
    """One place in the report, checked and with refs resolved."""

    def __init__(self, path: str, report: Mapping[str, Any]) -> None:
        self.path = path
        self.name = path.rpartition(".")[2]
        self.type = _name(report.get("type"))
        self.interface = _name(report.get("interface"))
        self.description: str = str(report.get("description", ""))
        self.state: str = str(report.get("state", "ready"))
        self.reason: str = str(report.get("reason", ""))
        self.methods = {name: RemoteMethod(name, method) for name, method in report.get("methods", {}).items()}
        self.children: dict[str, Node] = {}
        self.root = self
        """Of the tree in which it is."""

    def walk(self) -> Iterator[Node]:
        """This node and all below it, each once, whatever refs lead there."""
        seen: set[int] = set()
        found = [self]
        while found:
            node = found.pop()
            if id(node) not in seen:
                seen.add(id(node))
                found += node.children.values()
                yield node


def _name(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{value!r:.40} is no name")


class RemoteMethod:
    """One method in the report."""

    def __init__(self, name: str, report: Mapping[str, Any]) -> None:
        self.name = name
        self.kind = Kind(report["kind"])
        self.doc: str = str(report.get("doc", ""))
        self.parameters = [Parameter.from_wire(parameter) for parameter in report.get("parameters", [])]
        self.returns: dict[str, Any] = report.get("returns", {})

    def signature(self) -> str:
        """As help shows it: ``cycle(wait: float = 1.0)``."""
        shown = []
        for parameter in self.parameters:
            star = {"var-positional": "*", "var-keyword": "**"}.get(parameter.kind, "")
            default = "" if parameter.required or star else f" = {parameter.default!r}"
            shown.append(f"{star}{parameter.name}: {describe(parameter.schema)}{default}")
        return f"{self.name}({', '.join(shown)})"


def read_report(report: Mapping[str, Any]) -> Node:
    """The tree of nodes in a report. Raises :class:`~jmp.errors.ProtocolViolation` for one that cannot be understood."""
    try:
        root = _read("", report)
        _resolve(root, root, report)
        for node in root.walk():
            node.root = root
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ProtocolViolation(f"the exporter's report cannot be understood: {error}") from error
    return root


def _read(path: str, report: Mapping[str, Any]) -> Node:
    node = Node(path, report)
    for name, child in report.get("children", {}).items():
        if "ref" not in child:
            node.children[name] = _read(f"{path}.{name}" if path else name, child)
    return node


def _resolve(root: Node, node: Node, report: Mapping[str, Any]) -> None:
    """Put what refs name where they stand. The exporter has checked that they lead somewhere."""
    resolved: dict[str, Node] = {}
    for name, child in report.get("children", {}).items():
        if "ref" in child:
            resolved[name] = find(root, str(child["ref"]))
        else:
            _resolve(root, node.children[name], child)
            resolved[name] = node.children[name]
    node.children = resolved


def find(root: Node, path: str) -> Node:
    """The node at ``path``; KeyError if there is none."""
    node = root
    for step in path.split(".") if path else ():
        node = node.children[step]
    return node


F = TypeVar("F", bound=Callable[..., Any])
_VERB = "__jmp_verb__"


class ExitStatus(int):
    """What a verb returns to end the command with this status, when all there is to print has been printed."""


class VerbMark(NamedTuple):
    """How the command line offers a method."""

    name: str
    words: bool


@overload
def verb(function: F) -> F: ...
@overload
def verb(*, name: str = "", words: bool = False) -> Callable[[F], F]: ...
def verb(function: F | None = None, *, name: str = "", words: bool = False) -> F | Callable[[F], F]:
    """Let the command line offer this method of a client class, besides the driver's own: ``j DRIVER METHOD``.

    Parameters become arguments and options as with a driver's methods. A parameter ``progress`` is filled in with what shows it.
    ``name`` is the verb, the method's name unless given. With ``words`` its last parameter is ``*words``, and gets all from its
    first word on as it is, even what looks like an option: another command's.
    """

    def mark(marked: F) -> F:
        setattr(marked, _VERB, VerbMark(name or marked.__name__, words))
        return marked

    return mark(function) if function is not None else mark


def takes_words(function: object) -> bool:
    """Whether a verb was marked so."""
    mark = getattr(function, _VERB, None)
    return mark is not None and bool(mark.words)


def verbs_of(client: object) -> dict[str, Callable[..., Any]]:
    """The methods that a client class offers to the command line, by name."""
    marks = {
        name: getattr(getattr(type(client), name), _VERB, None)
        for name in dir(type(client))
        if not name.startswith("_")
    }
    return {mark.name: getattr(client, name) for name, mark in marks.items() if mark is not None}


class DriverClient:
    """A driver, or a group of them, as its user sees it: methods and children are attributes.

    ``await dut.power.on()`` calls, ``async for x in dut.power.readings()`` streams, ``async with dut.net.connect() as stream``
    opens a byte stream. Errors are those of :mod:`jmp.errors`.
    """

    default_verb: ClassVar[str | None] = None
    """The verb that ``j DRIVER`` on its own stands for."""

    def __init__(self, backend: Backend, node: Node, children: Mapping[str, DriverClient]) -> None:
        self._backend = backend
        self._node = node
        self._children = children
        self.__doc__ = node.description

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        for known in (name, name.replace("_", "-")):  # configured names may hold hyphens
            found: DriverClient | Method | None = self._children.get(known)
            if found is None and known in self._node.methods:
                found = Method(self._backend, self._node, self._node.methods[known])
            if found is not None:
                self.__dict__[name] = found  # it will be the same the next time
                return found
        what = f"{self._node.path or 'the device'} has no method or driver {name!r}"
        hint = did_you_mean(name, [*self._node.methods, *self._children])
        raise AttributeError(what + hint, name=name, obj=None)  # so that Python adds no hint of its own, to `_node` say

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._node.methods, *self._children})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._node.path or 'device'}>"


class Method:
    """A method of a driver, bound to its session."""

    def __init__(self, backend: Backend, node: Node, method: RemoteMethod) -> None:
        self._backend = backend
        self._target = node.path
        self._method = method
        self.__name__ = method.name
        self.__doc__ = f"{method.signature()}\n\n{method.doc}".rstrip()
        kinds = {Kind.CALL: backend.call, Kind.ITEMS: backend.items, Kind.BYTES: backend.open}
        self._begin: Callable[..., Any] = kinds[method.kind]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._begin(self._target, self.__name__, args, kwargs)

    def __repr__(self) -> str:
        return f"<method {self._target}.{self._method.signature()}>"


ClientClass = Callable[[Backend, Node, Mapping[str, DriverClient]], DriverClient]


def build(
    backend: Backend, node: Node, class_of: Callable[[str], ClientClass | None] = lambda interface: None
) -> DriverClient:
    """The client of ``node`` and all below it; ``class_of`` an interface id is the class to use, None for the generic one."""
    made: dict[int, DriverClient] = {}
    making: set[int] = set()

    def make(node: Node) -> DriverClient:
        if id(node) not in made:  # refs share the client of what they name
            if id(node) in making:
                raise ProtocolViolation(f"the exporter's report holds itself at {node.path!r}")
            making.add(id(node))
            children = {name: make(child) for name, child in node.children.items()}
            chosen = class_of(node.interface) if node.interface is not None else None
            made[id(node)] = (chosen or DriverClient)(backend, node, children)
        return made[id(node)]

    return make(node)


# ---- the same without an event loop


class Asynchronous:
    """What a client class hands out and whose methods are coroutines: :class:`Blocking` gives it with plain ones."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing but a backend that blocks."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("a client class awaited something other than its backend")


class Blocking:
    """Any object of the asynchronous client API, with plain methods of the same names.

    Coroutines are run, asynchronous generators become generators, asynchronous context managers plain ones; what they give is
    wrapped in turn; what is a plain context manager already is given as it is. The backend must be one that blocks.
    """

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped
        self.__doc__ = wrapped.__doc__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._wrapped, name)
        found = _blocking(value)
        if isinstance(value, Method | DriverClient):
            self.__dict__[name] = found  # it will be the same the next time
        return found

    def __dir__(self) -> list[str]:
        return dir(self._wrapped)

    def __repr__(self) -> str:
        return repr(self._wrapped)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _blocking(self._wrapped(*args, **kwargs))

    def __iter__(self) -> Iterator[Any]:
        iterator = self._wrapped.__aiter__()
        try:
            while True:
                try:
                    item = run(iterator.__anext__())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if (close := getattr(iterator, "aclose", None)) is not None:
                run(close())

    def __enter__(self) -> Any:
        return _blocking(run(self._wrapped.__aenter__()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        result: bool | None = run(self._wrapped.__aexit__(kind, error, traceback))
        return result


@contextmanager
def entered(opening: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """What an asynchronous context manager gives, as it is; it waits for nothing but a backend that blocks."""
    value = run(_awaited(opening.__aenter__()))
    try:
        yield value
    except BaseException as error:
        if not run(_awaited(opening.__aexit__(type(error), error, error.__traceback__))):
            raise
    else:
        run(_awaited(opening.__aexit__(None, None, None)))


async def _awaited(waited: Awaitable[T]) -> T:
    return await waited


_PLAIN = (str, bytes, int, float, bool, type(None), list, tuple, dict, set, frozenset)


def _blocking(value: Any) -> Any:
    if type(value) is CoroutineType:  # most often: a call
        value = run(value)
    if isinstance(value, _PLAIN) or hasattr(type(value), "__enter__"):  # the latter serves both sides by itself
        return value
    if (
        callable(value)
        or isinstance(value, DriverClient | Asynchronous)
        or hasattr(value, "__aiter__")
        or hasattr(value, "__aenter__")
        or hasattr(value, "receive_some")
    ):
        return Blocking(value)
    return value
