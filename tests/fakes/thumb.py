"""As much of a Cortex-M's processor as the programs need by which debuggers write flash: ARMv7-M's Thumb instructions."""

from __future__ import annotations

from typing import Protocol

SP, LR, PC = 13, 14, 15
_STEPS = 1_000_000
"""More are taken for a loop without end."""


class Memory(Protocol):
    def read(self, address: int, size: int) -> int: ...

    def write(self, address: int, size: int, value: int) -> None: ...


def execute(memory: Memory, core: list[int]) -> None:
    """Run from the program counter on, up to a breakpoint. ``core``: registers 0 to 15, and what else a debugger sees."""
    processor = _Processor(memory, core)
    for _ in range(_STEPS):
        if not processor.step():
            return
    raise AssertionError(f"no breakpoint within {_STEPS} instructions")


class _Processor:
    def __init__(self, memory: Memory, core: list[int]) -> None:
        self._memory, self._core = memory, core
        self._negative = self._zero = self._carry = False

    def step(self) -> bool:
        """One instruction; False at a breakpoint, where it stays."""
        core = self._core
        at = core[PC] & ~1
        code = self._memory.read(at, 2)
        if code >> 8 == 0xBE:
            return False
        if code >> 11 in (0b11101, 0b11110, 0b11111):
            core[PC] = at + 4
            self._long(code, self._memory.read(at + 2, 2), at)
        else:
            core[PC] = at + 2
            self._short(code, at)
        return True

    def _short(self, code: int, at: int) -> None:
        core, low, middle = self._core, code & 7, code >> 3 & 7
        match code >> 11:
            case 0b00000:  # LSLS
                shift = code >> 6 & 31
                if shift:
                    self._carry = bool(core[middle] << shift & 1 << 32)
                core[low] = self._flags(core[middle] << shift)
            case 0b00011:  # ADDS, SUBS
                value = code >> 6 & 7 if code & 1 << 10 else core[code >> 6 & 7]
                core[low] = self._sum(core[middle], ~value, 1) if code & 1 << 9 else self._sum(core[middle], value, 0)
            case 0b00100:  # MOVS
                core[code >> 8 & 7] = self._flags(code & 0xFF)
            case 0b00101:  # CMP
                self._sum(core[code >> 8 & 7], ~(code & 0xFF), 1)
            case 0b01000 if code >> 6 == 0b0100001010:  # CMP
                self._sum(core[low], ~core[middle], 1)
            case 0b01000 if code >> 8 == 0b01000110:  # MOV
                core[code >> 4 & 8 | low] = core[code >> 3 & 15]
            case 0b01000 if code >> 7 == 0b010001110:  # BX
                core[PC] = core[code >> 3 & 15]
            case 0b01001:  # LDR, from beside the program
                core[code >> 8 & 7] = self._memory.read((at + 4 & ~3) + 4 * (code & 0xFF), 4)
            case 0b01100 | 0b01101 | 0b01110 | 0b01111 | 0b10000 | 0b10001:  # STR, LDR; STRB, LDRB; STRH, LDRH
                size = {0b0110: 4, 0b0111: 1, 0b1000: 2}[code >> 12]
                place = core[middle] + size * (code >> 6 & 31)
                if code & 1 << 11:
                    core[low] = self._memory.read(place, size)
                else:
                    self._memory.write(place, size, core[low] & (1 << 8 * size) - 1)
            case 0b10110 if code >> 9 == 0b1011010:  # PUSH
                saved = [number for number in range(8) if code & 1 << number] + [LR] * (code >> 8 & 1)
                for number in reversed(saved):
                    core[SP] -= 4
                    self._memory.write(core[SP], 4, core[number])
            case 0b10111 if code >> 9 == 0b1011110:  # POP
                for number in [number for number in range(8) if code & 1 << number] + [PC] * (code >> 8 & 1):
                    core[number] = self._memory.read(core[SP], 4)
                    core[SP] += 4
            case 0b11010 | 0b11011:  # B, on a condition
                if self._holds(code >> 8 & 15):
                    core[PC] = at + 4 + 2 * _signed(code, 8)
            case 0b11100:  # B
                core[PC] = at + 4 + 2 * _signed(code, 11)
            case _:
                raise AssertionError(f"no instruction that is known here: {code:#06x} at {at:#010x}")

    def _long(self, code: int, more: int, at: int) -> None:
        core = self._core
        if code >> 11 == 0b11110 and more >> 14 == 0b11 and more & 1 << 12:  # BL
            core[LR] = at + 4 | 1
            sign = code >> 10 & 1
            high = (~(more >> 13 ^ sign) & 1) << 23 | (~(more >> 11 ^ sign) & 1) << 22
            core[PC] = at + 4 + _signed(sign << 24 | high | (code & 0x3FF) << 12 | (more & 0x7FF) << 1, 25)
        elif code & 0xFFF0 in (0xF040, 0xF020) and not more & 0x7000:  # ORR, BIC with a byte
            value = core[code & 15]
            core[more >> 8 & 15] = value | more & 0xFF if code & 0x40 else value & ~(more & 0xFF)
        elif code & 0xFFF0 == 0xEBB0 and more & 0x0F30 == 0x0F10:  # CMP, with what is shifted to the right
            shift = more >> 10 & 0x1C | more >> 6 & 3
            self._sum(core[code & 15], ~(core[more & 15] >> shift), 1)
        else:
            raise AssertionError(f"no instruction that is known here: {code:#06x} {more:#06x} at {at:#010x}")

    def _holds(self, condition: int) -> bool:
        flag = {0: self._zero, 1: self._carry, 2: self._negative}[condition >> 1]
        return flag != bool(condition & 1)

    def _flags(self, value: int) -> int:
        value &= 0xFFFFFFFF
        self._negative, self._zero = bool(value >> 31), value == 0
        return value

    def _sum(self, one: int, other: int, carry: int) -> int:
        total = one + (other & 0xFFFFFFFF) + carry
        self._carry = bool(total >> 32)
        return self._flags(total)


def _signed(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> width - 1 else value
