"""Boards that Renode simulates.

``driver``   the configuration, and what clients call
``monitor``  Renode's monitor: commands and what they print
"""

from __future__ import annotations

from jmp_drivers.renode.driver import Renode

__all__ = ["Renode"]
