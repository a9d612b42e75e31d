"""Bytes ↔ values. Plain synchronous Python: no clock, no task, no socket.

``codec``   values ↔ msgpack, unchanged: the extension types beyond what msgpack knows, and the limits
``frames``  what a mux sends in one link message: frames ↔ bytes
``records``   what a lab keeps: clients, exporters, policies, tokens, leases
``selector``  labels and selectors, in Kubernetes' syntax
``duration``  durations and times as people write them
``tokens``    the claims of tokens, and their verification with public keys
"""
