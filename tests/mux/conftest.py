"""Hypothesis tries the same examples every time, and does not mind a slow machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("jmp", deadline=None, derandomize=True, database=None)
settings.load_profile("jmp")
