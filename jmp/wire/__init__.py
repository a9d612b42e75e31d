"""Bytes ↔ values. Plain synchronous Python: no clock, no task, no socket.

``codec``   values ↔ msgpack, unchanged: the extension types beyond what msgpack knows, and the limits
``frames``  what a mux sends in one link message: frames ↔ bytes
"""
