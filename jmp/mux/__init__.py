"""Many flow-controlled byte streams over one link.

``protocol``  the rules, sans-I/O: a message in → events out, actions in → messages out
``stream``    Trio's half: streams that are ordinary ``trio.abc.HalfCloseableStream``s
``blocking``  the half for programs without an event loop: the same streams on blocking sockets
"""
