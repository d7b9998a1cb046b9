"""The rows of the table, what they say together, and how they look."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.bars import Bar
from benchmarks.clock import Measured, Spread

HEADINGS = ("kernel", "kind", "against", "error", "wall ms", "cpu ms", "ratio", "bar", "")


@dataclass(frozen=True)
class Row:
    """One line: a variant and how far it is from ours.

    `error` is the largest relative error against the reference in float64 and `agrees` the verdict on it; `wall` and
    `cpu` are seconds; `ratio` is judged by `bar`; `note` says why a figure is missing or how it was made.
    """

    kernel: str
    kind: str
    name: str
    note: str = ""
    error: float | None = None
    agrees: bool = True
    wall: Spread | None = None
    cpu: Spread | None = None
    ratio: Spread | None = None
    bar: Bar | None = None

    @property
    def verdict(self) -> str:
        """DISAGREES, or of a row with a bar: STRETCH (both reached), PASS, short, not measured.

        >>> Row("wkv6", "forward", "a peer", ratio=Spread(12.0, 11.0, 13.0), bar=Bar(10, 15)).verdict
        'PASS'
        """
        if not self.agrees:
            return "DISAGREES"
        if self.bar is None:
            return ""
        if self.ratio is None:
            return "not measured"
        if not self.bar.holds(self.ratio.median):
            return "short"
        return "STRETCH" if self.bar.stretched(self.ratio.median) else "PASS"

    def timed(self, measured: Measured, ratio: Spread | None) -> "Row":
        """The row with its times and how far they are from ours."""
        return replace(self, wall=measured.spread("wall"), cpu=measured.spread("cpu"), ratio=ratio)

    def with_ratio(self, ratio: Spread) -> "Row":
        """The row with a ratio that is not one of its times."""
        return replace(self, ratio=ratio)

    def with_error(self, error: float, agrees: bool) -> "Row":
        """The row with how far it is from what it should be."""
        return replace(self, error=error, agrees=agrees)

    def without_bar(self) -> "Row":
        """The row where its bar does not apply."""
        return replace(self, bar=None)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON can hold it."""
        return asdict(self) | {"verdict": self.verdict}


def exit_code(rows: Sequence[Row]) -> int:
    """3 if anything disagrees with the reference, else 1 if a bar is short, else 0; not measured is no fault."""
    if not all(row.agrees for row in rows):
        return 3
    return 1 if any(row.verdict == "short" for row in rows) else 0


def table(rows: Sequence[Row]) -> str:
    """Aligned text, a blank line between kernels and kinds; notes at the end of their lines."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(HEADINGS))]
    lines, before = [], None
    for row, line in zip([None, *rows], cells, strict=True):
        if row is not None and (row.kernel, row.kind) != before:
            before = (row.kernel, row.kind)
            lines.append("")
        padded = (x.ljust(w) if n < 3 else x.rjust(w) for n, (x, w) in enumerate(zip(line, widths, strict=True)))
        lines.append(("  ".join(padded) + ("  " + row.note if row is not None and row.note else "")).rstrip())
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """How many bars hold, and which are short or not measured."""
    judged = [row for row in rows if row.bar is not None]
    held = [row for row in judged if row.verdict in ("PASS", "STRETCH")]
    lines = [f"{len(held)} of {len(judged)} bars hold, {sum(r.verdict == 'STRETCH' for r in held)} with their stretch."]
    for verdict in ("DISAGREES", "short", "not measured"):
        named = [f"{row.kernel} {row.kind}: {row.name}" for row in rows if row.verdict == verdict]
        if named:
            lines.append(f"{verdict}: {'; '.join(named)}")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    error = "" if row.error is None else f"{row.error:.1e}"
    bar = "" if row.bar is None else f"{'<=' if row.bar.most else '>='} {row.bar.must:g}" + _stretch(row.bar)
    ratio = "" if row.ratio is None else _spread(row.ratio, 1)
    times = ("" if x is None else _spread(x, 1000) for x in (row.wall, row.cpu))
    return (row.kernel, row.kind, row.name, error, *times, ratio, bar, row.verdict)


def _stretch(bar: Bar) -> str:
    return "" if bar.stretch is None else f" [{bar.stretch:g}]"


def _spread(spread: Spread, scale: float) -> str:
    """Median (low..high), three digits each; the median alone where there is one value.

    >>> _spread(Spread(0.01234, 0.012, 0.02), 1000), _spread(Spread(2.0, 2.0, 2.0), 1)
    ('12.3 (12.0..20.0)', '2.00')
    """
    middle, low, high = (_digits(x * scale) for x in (spread.median, spread.low, spread.high))
    return middle if spread.low == spread.high else f"{middle} ({low}..{high})"


def _digits(x: float) -> str:
    if not math.isfinite(x) or x == 0:
        return f"{x:g}"
    return f"{x:.{max(0, 2 - math.floor(math.log10(abs(x))))}f}" if abs(x) >= 0.001 else f"{x:.1e}"
