"""One call = one stream. The only place where an exception becomes a wire error, and back.

``messages``  requests and replies ↔ bytes; errors ↔ what crosses the wire. Sans-I/O
``serve``     answers the calls that come in on a connection (Trio)
``call``      makes calls on a connection (Trio)
``blocking``  makes calls without an event loop
"""
