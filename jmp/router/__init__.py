"""Joins a client and an exporter that cannot reach each other, by relaying messages without decoding them.

``pairing``  which two links belong together: pure
``serve``    its listener, its link to the controller
"""
