"""CAN and what is spoken on it, by python-can, can-isotp and udsoncan; UDS over Ethernet (DoIP) as well.

``bus``    the configuration of a bus, and ``can``: its frames
``isotp``  ``iso-tp``: messages longer than a frame
``uds``    ``uds``, ``doip``: diagnosis of an electronic control unit
"""
