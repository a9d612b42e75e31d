"""Uses a device: the Python API, blocking and for Trio, with the same names.

``connect``     ``with connect() as dut`` (blocking) or ``async with connect() as dut`` (Trio)
``local``       an exporter of one's own, started for as long as it is used
``interfaces``  interface id → the client class that this side has for it; ``table`` of those that come with jmp
``console``, ``storage``, ``network``   those classes: what goes beyond one call
``relay``       lets programs on this machine use a session that is held over a remote link
``adapters``    a device's ports as what other tools expect: TCP and Unix ports, a pty, an expect-style console
``pytest_plugin``  fixtures
"""
