"""The rows: what each one says, and the bar that jmp is to pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, Literal

JMP: Final = "jmp"
JUMPSTARTER: Final = "Jumpstarter"
LABGRID: Final = "labgrid"
TRIO: Final = "raw Trio"
BLOCKING: Final = "raw blocking"
WHO: Final = (JMP, JUMPSTARTER, LABGRID, TRIO, BLOCKING)


@dataclass(frozen=True)
class Bar:
    """``factor`` times the figure of ``to``, or ``factor`` itself; at least or at most, as more or less is better."""

    factor: float
    to: str | None = None


@dataclass(frozen=True)
class Row:
    name: str
    what: str
    unit: str
    group: str
    """Which processes it takes."""
    measurement: str
    """What those are asked for."""
    figure: str = "rate"
    """Which of the figures in the answer it is."""
    better: Literal["more", "less"] = "more"
    bars: tuple[Bar, ...] = ()
    by: tuple[str, ...] = (JMP,)
    """Whose figures it has, without the peers that are asked for separately."""
    recorded: tuple[str, float] | None = None
    """A row and the share of it that Jumpstarter's Go router, which is on no package registry, was once measured to leave."""
    special: bool = False
    """Takes long: only when it is asked for by name."""


def _js(factor: float) -> tuple[Bar, ...]:
    return (Bar(factor, JUMPSTARTER),)


def _command(name: str, what: str, *bars: Bar) -> Row:
    return Row(name, what, "ms", "commands", name, "ms", "less", bars)


ROWS: Final = (
    Row("call-async", "a call, Trio client", "/s", "local", "call-async", bars=_js(4), by=(JMP, TRIO, BLOCKING)),
    Row(
        "call-async-p50", "… its median", "µs", "local", "call-async", "p50", "less", (Bar(2.5, TRIO),),
        by=(JMP, TRIO, BLOCKING),
    ),
    Row("call-100", "100 calls at once", "/s", "local", "call-100"),
    Row("call-thread", "a call of a plain method", "/s", "local", "call-thread"),
    Row("call-sync", "a call, blocking client", "/s", "local", "call-sync", bars=_js(8)),
    Row("call-sync-p50", "… its median", "µs", "local", "call-sync", "p50", "less"),
    Row("items-async", "items of a stream, Trio client", "/s", "local", "items-async", bars=_js(40)),
    Row("items-sync", "items of a stream, blocking client", "/s", "local", "items-sync", bars=_js(60)),
    Row("bytes-up", "byte stream to the device", "MB/s", "local", "bytes", "up", bars=_js(2), by=(JMP, TRIO, BLOCKING)),
    Row("bytes-down", "byte stream from the device", "MB/s", "local", "bytes", "down", bars=_js(2), by=(JMP, BLOCKING)),
    Row("open", "open a stream, 1 byte, close", "/s", "local", "open", bars=_js(6)),
    Row("forward-up", "TCP port forward to the device", "MB/s", "local", "forward", "forward-up", bars=_js(3)),
    Row("forward-down", "TCP port forward from the device", "MB/s", "local", "forward", "forward-down", bars=_js(3)),
    Row("forward-p50", "… 64 bytes there and back", "µs", "local", "forward", "forward-p50", "less", _js(0.5)),
    Row("flash", "flash 128 MB, verified", "MB/s", "local", "flash", "flash", bars=_js(4)),
    Row("dump", "read 128 MB back, verified", "MB/s", "local", "flash", "dump", bars=_js(4)),
    Row(
        "router-call-async", "a call, Trio client", "/s", "router", "call-async", bars=_js(3.3),
        recorded=("call-async", 0.36),
    ),
    Row(
        "router-call-sync", "a call, blocking client", "/s", "router", "call-sync", bars=_js(5),
        recorded=("call-sync", 0.38),
    ),
    Row(
        "router-items", "items of a stream, Trio client", "/s", "router", "items-async", bars=_js(40),
        recorded=("items-async", 0.47),
    ),
    Row("router-up", "byte stream to the device", "MB/s", "router", "bytes", "up", bars=_js(3.5), recorded=("bytes-up", 0.16)),
    Row(
        "router-down", "byte stream from the device", "MB/s", "router", "bytes", "down", bars=_js(3.5),
        recorded=("bytes-down", 0.19),
    ),
    Row("router-flash", "flash 128 MB, verified", "MB/s", "router", "flash", "flash", bars=_js(4), recorded=("flash", 0.39)),
    _command("help", "jmp --help", Bar(150), Bar(0.1, JUMPSTARTER), Bar(0.25, LABGRID)),
    _command("version", "jmp version", Bar(150), Bar(0.1, JUMPSTARTER), Bar(0.25, LABGRID)),
    _command("j-power-on", "j power on in a session", Bar(150), Bar(0.1, JUMPSTARTER)),
    _command("shell-true", "jmp shell --exporter-config FILE -- true", Bar(600), Bar(0.25, JUMPSTARTER)),
    Row("lease-1", "lease grant and release, 1 client", "/s", "leases", "lease-1", bars=(Bar(1, LABGRID),)),
    Row("lease-16", "… 16 clients in all", "/s", "leases", "lease-16", bars=(Bar(1, LABGRID), Bar(1000))),
    Row("lease-exporter", "… until the exporter is ready, and free", "/s", "leases", "lease-exporter", bars=(Bar(1, LABGRID),)),
    Row("lease-waiting", "… 1 client beside 200 that wait", "/s", "leases", "lease-waiting", bars=(Bar(1, LABGRID),)),
    Row("zipapp", "dist/jmp", "MB", "size", "size", "MB", "less", (Bar(25),)),
    Row("consoles-p99", "a key's echo on 16 consoles of 1 MB/s, p99", "ms", "consoles", "consoles", "p99", "less", (Bar(50),)),
    Row("consoles-p50", "… its median", "ms", "consoles", "consoles", "p50", "less"),
    Row("consoles-rate", "… what each console got", "MB/s", "consoles", "consoles"),
    Row("consoles-memory", "… what the router's memory grew by", "MiB", "consoles", "consoles", "grown", "less", (Bar(4),)),
    Row("exporter-memory", "an idle exporter's link, on the controller", "KiB", "scale-1000", "scale", "exporter", "less"),
    Row("pair-memory", "an idle pair, on a router", "KiB", "pairs-1000", "pairs", "pair", "less"),
    Row(
        "exporter-memory-5000", "… with 5000 of them", "KiB", "scale-5000", "scale", "exporter", "less", special=True
    ),
    Row("pair-memory-5000", "… with 5000 of them", "KiB", "pairs-5000", "pairs", "pair", "less", special=True),
    Row("lab-acquire", "lab of 1000 exporters: leases asked for, durable", "/s", "scale-1000", "scale", "acquire"),
    Row("lab-turn", "… released, and the next in line ready", "/s", "scale-1000", "scale", "turn"),
    Row("lab-listing", "… listing of them all, p50", "ms", "scale-1000", "scale", "listing", "less"),
    Row("lab-restart", "… controller killed, all connected again", "s", "scale-1000", "scale", "again", "less"),
    Row("engine-release", "lease engine, 1000 exporters, 1000 waiting: release", "µs", "engine", "engine", "release", "less"),
    Row("engine-growth", "… against 100 and 100", "×", "engine", "engine", "growth", "less", (Bar(4),)),
    Row("hung-exporter", "p99 of acquires beside an exporter that hangs", "×", "hang", "hang", "ratio", "less", (Bar(2),)),
)  # fmt: skip


@dataclass
class Results:
    """Figures of each row by who made them, a list with one of each round."""

    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, row: Row, who: str, figure: float) -> None:
        self.figures.setdefault(row.name, {}).setdefault(who, []).append(figure)

    def median(self, row: str, who: str) -> float | None:
        figures = self.figures.get(row, {}).get(who)
        return median(figures) if figures else None

    def peer(self, row: Row, who: str) -> tuple[float | None, bool]:
        """A figure to compare with, and whether it is reckoned from one that was recorded elsewhere."""
        if who == JUMPSTARTER and row.recorded is not None:
            local = self.median(row.recorded[0], who)
            return (None, True) if local is None else (local * row.recorded[1], True)
        return self.median(row.name, who), False

    def verdicts(self, row: Row) -> list[dict[str, Any]]:
        """Each bar of a row: what it is, the ratio to whom it names, and whether it is passed; without those nobody measured."""
        own = self.median(row.name, JMP)
        found: list[dict[str, Any]] = []
        for bar in row.bars:
            other = 1.0 if bar.to is None else self.peer(row, bar.to)[0]
            if own is None or not other:
                continue
            ratio = own / other
            passed = ratio >= bar.factor if row.better == "more" else ratio <= bar.factor
            found.append({"to": bar.to, "bar": bar.factor, "ratio": ratio, "passed": passed})
        return found

    def as_json(self) -> dict[str, Any]:
        """Medians, all figures, and verdicts."""
        rows = {}
        for row in ROWS:
            if row.name in self.figures:
                medians = {who: self.median(row.name, who) for who in self.figures[row.name]}
                rows[row.name] = {
                    "what": row.what,
                    "unit": row.unit,
                    "medians": medians,
                    "figures": self.figures[row.name],
                    "bars": self.verdicts(row),
                }
        return rows

    def lines(self) -> list[str]:
        """The table as text: figures, and for each bar the ratio, the bar, and whether it is passed."""
        shown = [row for row in ROWS if row.name in self.figures]
        who = [one for one in WHO if any(self.peer(row, one)[0] is not None for row in shown)]
        table = [["row", "what", "", *who, "bars"]]
        for row in shown:
            cells = [row.name, ("via router: " if row.group == "router" else "") + row.what, row.unit]
            for one in who:
                figure, reckoned = self.peer(row, one)
                cells.append("" if figure is None else ("~" if reckoned else "") + number(figure))
            cells.append("; ".join(map(_verdict, self.verdicts(row))))
            table.append(cells)
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        numeric = range(3, 3 + len(who))
        return [
            "  ".join(
                cell.rjust(widths[column]) if column in numeric else cell.ljust(widths[column])
                for column, cell in enumerate(line)
            ).rstrip()
            for line in table
        ]


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 1000:
        return f"{round(value, 2 - len(str(int(value)))):.0f}" if value < 1e6 else f"{value:.3g}"
    return f"{value:.3g}"


def _verdict(verdict: dict[str, Any]) -> str:
    sign = "✓" if verdict["passed"] else "✗"
    if verdict["to"] is None:
        return f"{sign} bar {number(verdict['bar'])}"
    return f"{sign} {number(verdict['ratio'])}× {verdict['to']} (bar {number(verdict['bar'])}×)"
