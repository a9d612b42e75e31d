"""Objects of a role's own that answer calls, such as ``@session`` and ``@lab``: methods are marked as in a driver."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from jmp.driver.driver import _MARK
from jmp.driver.schema import Parameter, bind, did_you_mean, parameters_of
from jmp.errors import NotFound
from jmp.rpc.messages import Kind, Request
from jmp.rpc.serve import Method, waits_for_nothing


def method_of(service: object, request: Request, names: Sequence[str] | None = None) -> Method:
    """What carries out a request at ``service``: an exported ``async def`` or asynchronous generator, its arguments bound.

    ``names`` are those that the caller may use, all unless given. Raises ``NotFound`` and ``BadValue``.
    """
    cls: Any = type(service)
    known = _methods(cls)
    if names is not None:
        known = {name: known[name] for name in names}
    if request.method not in known:
        raise NotFound(f"{request.target} has no method {request.method!r}{did_you_mean(request.method, known)}")
    kind, parameters, at_once = known[request.method]
    args, kwargs = bind(parameters, request.args, request.kwargs, f"{request.target}.{request.method}")
    return Method(kind, partial(getattr(service, request.method), *args, **kwargs), at_once=at_once)


def exports(cls: Any, name: str) -> bool:
    """Whether objects of this class answer calls of ``name``."""
    return name in _methods(cls)


@cache
def _methods(cls: Any) -> Mapping[str, tuple[Kind, tuple[Parameter, ...], bool]]:
    found = {}
    for name, function in inspect.getmembers(cls, inspect.isfunction):
        if hasattr(function, _MARK):
            kind = Kind.ITEMS if inspect.isasyncgenfunction(function) else Kind.CALL
            found[name] = (kind, tuple(parameters_of(function, owner=cls)), waits_for_nothing(function))
    return found
