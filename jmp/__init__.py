"""jmp: hardware-in-the-loop testing for people and CI jobs, in one executable file.

The folders are the diagram; an import may only point to the right (``tests/test_layers.py`` keeps it so)::

    cli → client | exporter → driver → rpc → mux → link → wire → errors

``wire``      bytes ↔ values: the msgpack codec, frames. Plain synchronous Python
``link``      carries messages: WebSocket over TLS, TCP and Unix sockets, or memory
``mux``       many flow-controlled streams over one link
``rpc``       one call = one stream; the only place where an exception becomes a wire error and back
``driver``    all that a driver author imports
``exporter``  owns a device: runs its drivers, decides who may touch it
``client``    uses a device: sessions, Python API, adapters, pytest plugin
``cli``       arguments → one role's function → output
``j``         the same for what is called most, by the shortest way
``logs``      a server's log, whose lines say which lease they are about
"""

TYPE_CHECKING = False  # as in typing, which takes longer to import than all else that j needs
if TYPE_CHECKING:
    from jmp.client.connect import connect
    from jmp.rpc.blocking import fail_after

__all__ = ["__version__", "connect", "fail_after"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Late, because the command line imports this package for every --help.
    if name == "connect":
        from jmp.client.connect import connect

        return connect
    if name == "fail_after":
        from jmp.rpc.blocking import fail_after

        return fail_after
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
