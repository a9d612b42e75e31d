"""A simulated small Linux board, in pure Python: for demonstrations, documentation, tests and load.

``driver``    what clients see: power, console, storage, network
``machine``   runs the board on Trio: time, card, console readers, connections
``card``      the SD card, a sparse file
``board``     the board without I/O: one table of states, events and time in, output out
``program``   what a state runs, and what a program may ask the board for
``firmware``  boot loader and boot prompt
``shell``     the login's shell and its commands; ``syntax`` is their grammar
``system``    facts, boot log and files of the running system
``tty``       the terminal's line editing
``image``     what the first sector of the card means
``web``       the HTTP service on the network port
"""

from __future__ import annotations

from jmp_drivers.virtual_board.driver import VirtualBoard

__all__ = ["VirtualBoard"]
