"""Pictures from plain numbers: curves, heat maps, and the gate's margins. No pyplot, no global state, no clock.

The same numbers give the same bytes. Labels come from models and are data: they can't start mathematical text, hide a
legend entry, or break a line. matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from statecheck.escaping import visible
from statecheck.verdict import Bound, Criterion, Measurement, Series, Status, Verdict, Where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours (2008), told apart by all common forms of colour blindness; yellow is too light for a line.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
STATUS_COLOURS = {Status.PASS: "#009E73", Status.WARN: "#E69F00", Status.FAIL: "#D55E00"}
STATUS_MARKS = {Status.PASS: "o", Status.WARN: "^", Status.FAIL: "X"}
UNDECIDED_COLOUR, UNDECIDED_MARK = "#7F7F7F", "s"

LEGEND_ROWS = 12  # more curves than this are coloured by layer, with a colour bar
FEW_POINTS = 12  # up to this many points are drawn as marks with error bars, more as a line with a band
LARGEST = 1e150  # larger numbers are drawn as not finite: with its margins a frame must fit in a double
FAR = 1000.0  # margins are drawn between 1/FAR and FAR
WIDTH, DPI = 9.0, 100  # inches, dots per inch: 900 pixels

_STYLE: dict[str, Any] = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
}


def figures(verdicts: Iterable[Verdict]) -> dict[str, Figure]:
    """All pictures of a report, by file name: one for each name of a Series, a heat map where the curves of one name
    belong to layers, and the margins of the gate (`gate.png`).

    Series of one name share one figure; a name without any finite point has none.
    """
    rows = list(verdicts)
    groups, files = curves_by_name(rows), figures_of(rows)
    gate = margins(rows)
    found = {"gate.png": gate} if gate is not None else {}
    for name, (picture, *heat_map) in files.items():
        found[picture] = lines(name, groups[name])
        found |= {file: layer_map(name, groups[name]) for file in heat_map}
    return found


def figures_of(verdicts: Iterable[Verdict]) -> dict[str, list[str]]:
    """The files of each name of a Series: its curves, and their heat map where there is one."""
    groups = curves_by_name(verdicts)
    stems = file_names(groups)
    return {
        name: [f"{stems[name]}.png", *([f"{stems[name]}-map.png"] if by_layer(curves) else [])]
        for name, curves in groups.items()
    }


def curves_by_name(verdicts: Iterable[Verdict]) -> dict[str, list[Series]]:
    """The curves of all verdicts, grouped by the name of their figure, in the order in which they come."""
    groups: dict[str, list[Series]] = {}
    for verdict in verdicts:
        for series in verdict.series:
            groups.setdefault(series.name, []).append(series)
    return {name: curves for name, curves in groups.items() if any(map(_has_points, curves))}


def _has_points(series: Series) -> bool:
    return any(_drawable(x) and _drawable(y) for x, y in zip(series.x, series.y, strict=False))


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A file name (without its ending) for each name: plain ASCII, no two alike, never `gate`.

    >>> file_names(["state RMS", "state-rms", "../x"])
    {'state RMS': 'state-rms', 'state-rms': 'state-rms-2', '../x': 'x'}
    """
    taken, found = {"gate"}, {}
    for name in names:
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "figure"
        number, file = 1, stem
        while file in taken:
            number += 1
            file = f"{stem}-{number}"
        taken |= {file, f"{file}-map"}
        found[name] = file
    return found


def lines(title: str, curves: Sequence[Series]) -> Figure:
    """Curves in one frame: marks with error bars where there are few points, else lines with a band from low to high.

    Up to twelve curves are named beside the frame; more are coloured by layer. A curve that leaves the finite numbers
    is marked with a cross at its last finite value.
    """
    with _styled():
        lost = any(_first_lost(series) for series in curves)
        figure, axes = _frame(title, 4.2, " (cross: last finite value)" if lost else "")
        colours = _colours(curves)
        handles = [_draw(axes, series, *look) for series, look in zip(curves, colours, strict=True)]
        _scales(axes, curves)
        if _x_name(title) == "layer":
            axes.locator_params(axis="x", integer=True)
        axes.set_xlabel(_text(_with_unit(_x_name(title), curves[0].x_unit)))
        axes.set_ylabel(_text(_with_unit(_y_name(title), curves[0].y_unit)))
        if len(curves) > LEGEND_ROWS:
            _colour_bar(figure, axes, curves)
        elif len(curves) > 1 or curves[0].label:
            labels = [_short(series.label or _place(series.where)) for series in curves]
            axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
        return figure


def heatmap(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[float],
    *,
    title: str,
    unit: str = "",
    x_label: str = "position (tokens)",
    y_label: str = "layer",
    names: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A table of numbers as colours: one line a row (top to bottom), one cell a column. NaN and infinities stay blank.

    `names` stand under the columns in place of their numbers. The colours span `limits`, or else the values: positive
    ones over more than two orders of magnitude by their logarithm. Raises ValueError if `values` is not
    len(rows) x len(columns), or is empty.
    """
    if not rows or not columns or len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise ValueError(
            f"heatmap: expected {len(rows)} rows of {len(columns)} values, at least one of each, "
            f"found {[len(row) for row in values]}"
        )
    with _styled():
        from matplotlib.colors import LogNorm, Normalize

        figure, axes = _frame(title, min(max(1.8 + 0.3 * len(rows), 2.6), 12.0))
        finite = [v for row in values for v in row if _drawable(v)] or [0.0]
        low, high = limits or (min(finite), max(finite))
        norm = LogNorm(low, high) if low > 0 and high / low > 100 else Normalize(low, high)
        cells = [[_finite(v) for v in row] for row in values]
        image = axes.pcolormesh(_edges(columns), range(len(rows) + 1), cells, norm=norm, cmap="cividis")
        axes.set_facecolor("#F2F2F2")
        axes.grid(visible=False)
        axes.invert_yaxis()
        step = math.ceil(len(rows) / 30)
        axes.set_yticks([i + 0.5 for i in range(0, len(rows), step)], [_short(name) for name in rows[::step]])
        if names:
            axes.set_xticks(list(columns), [_short(name) for name in names])
        axes.set_xlabel(_text(x_label))
        axes.set_ylabel(_text(y_label))
        figure.colorbar(image, ax=axes, label=_text(unit), pad=0.02)
        return figure


def by_layer(curves: Sequence[Series]) -> bool:
    """True if the curves make a table of layer by position: two or more places with a layer, on the same x."""
    same = len({series.x for series in curves}) == 1 and len(curves[0].x) > FEW_POINTS
    places = {(series.label, str(series.where)) for series in curves}
    x = curves[0].x
    rising = all(_drawable(a) and _drawable(b) and a < b for a, b in itertools.pairwise(x))
    layered = all(series.where.layer is not None and len(series.y) == len(series.x) for series in curves)
    return same and rising and layered and len(places) == len(curves) > 1


def layer_map(name: str, curves: Sequence[Series]) -> Figure:
    """The curves of one figure as a heat map, ordered by component and layer."""
    ordered = sorted(curves, key=lambda s: (s.where.component or "", s.where.layer or 0, s.label))
    return heatmap(
        [series.y for series in ordered],
        [series.label or _place(series.where) for series in ordered],
        ordered[0].x,
        title=f"{name}, by layer",
        unit=_with_unit(_y_name(name), ordered[0].y_unit),
        x_label=_with_unit(_x_name(name), ordered[0].x_unit),
    )


def margins(verdicts: Iterable[Verdict]) -> Figure | None:
    """How far each judged number is from its threshold: times on the safe side, with its interval; None without any.

    The line at 1 is the threshold of `pass`; the dark bar in a row is that of `fail`. Thresholds of 0 have no such
    ratio and are left to the tables.
    """
    judged = [
        (part, part.measurements[0], part.criteria[0])
        for verdict in verdicts
        for part in verdict.parts
        if part.measurements
        and part.criteria
        and _scale(part.criteria[0])
        and math.isfinite(part.measurements[0].value)
    ]
    if not judged:
        return None
    with _styled():
        figure, axes = _frame("Margin to the threshold of each judged number", 1.3 + 0.27 * len(judged))
        for height, (part, number, criterion) in enumerate(judged):
            _margin_row(axes, height, part.status, number, criterion)
        _margin_axes(axes, [_short(f"{part.id}  {_place(number.where)}".rstrip(), 44) for part, number, _ in judged])
        return figure


def png(figure: Figure) -> bytes:
    """The picture as PNG, without date or version: equal figures give equal bytes."""
    buffer = io.BytesIO()
    with _styled():
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def margin(value: float, bounds: Sequence[Bound]) -> float:
    """How many times `value` is on the safe side of the nearest bound; under 1 is on the wrong side.

    >>> margin(1.0, [Bound.parse("< 2")]), margin(0.4, [Bound.parse("> 0.2"), Bound.parse("< 3")])
    (2.0, 2.0)
    """
    ratios = []
    for bound in bounds:
        better, worse = (value, bound.threshold) if bound.above else (bound.threshold, value)
        ratios.append(FAR if worse <= 0 else better / worse)
    return min(max(min(ratios), 1 / FAR), FAR)


def _scale(criterion: Criterion) -> tuple[Bound, ...]:
    """The bounds that give a ratio: those above zero of `pass`, or the other side of `fail`."""
    bounds = criterion.passes or tuple(Bound(not b.above, b.threshold) for b in criterion.fails)
    return bounds if all(bound.threshold > 0 for bound in bounds) else ()


def _margin_row(axes: Axes, height: int, status: Status, number: Measurement, criterion: Criterion) -> None:
    bounds = _scale(criterion)
    colour, mark = STATUS_COLOURS.get(status, UNDECIDED_COLOUR), STATUS_MARKS.get(status, UNDECIDED_MARK)
    middle = margin(number.value, bounds)
    ends = [middle, *(margin(end, bounds) for end in (number.low, number.high) if not math.isnan(end))]
    axes.plot([min(ends), max(ends)], [height, height], color=colour, linewidth=2.5, solid_capstyle="butt")
    axes.plot([middle], [height], mark, color=colour, markersize=7)
    for bound in criterion.fails:
        axes.plot([margin(bound.threshold, bounds)], [height], "|", color="#000000", markersize=12, markeredgewidth=2)


def _margin_axes(axes: Axes, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    axes.set_xscale("log")
    axes.set_xlim(0.7 / FAR, FAR / 0.7)
    axes.axvline(1, color="#000000", linewidth=1)
    axes.axvspan(0.7 / FAR, 1, color="#D55E00", alpha=0.06, linewidth=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(f"times on the safe side of the PASS threshold (cut at {FAR:g})")
    shown = [(str(status), STATUS_COLOURS[status], STATUS_MARKS[status]) for status in STATUS_COLOURS]
    shown += [("undecided", UNDECIDED_COLOUR, UNDECIDED_MARK), ("FAIL threshold", "#000000", "|")]
    handles = [Line2D([], [], color=colour, marker=mark, linestyle="", label=name) for name, colour, mark in shown]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(handles), borderaxespad=0.2)
    axes.set_title(axes.get_title(loc="left"), pad=26)


def _draw(axes: Axes, series: Series, colour: Any, style: str) -> Any:
    """Draw one curve; returns what stands for it in a legend."""
    points = min(len(series.x), len(series.y))
    x, y = [_finite(v) for v in series.x[:points]], [_finite(v) for v in series.y[:points]]
    banded = points and len(series.low) == len(series.high) == points
    low, high = ([_finite(v) for v in edge] if banded else [] for edge in (series.low, series.high))
    if points <= FEW_POINTS and banded:
        below = [max(a - b, 0.0) for a, b in zip(y, low, strict=True)]
        above = [max(b - a, 0.0) for a, b in zip(y, high, strict=True)]
        handle: Any = axes.errorbar(
            x, y, [below, above], color=colour, linestyle=style, marker="o", markersize=5, capsize=3
        )
    else:
        mark = "o" if points <= FEW_POINTS else ""
        (handle,) = axes.plot(x, y, color=colour, linestyle=style, marker=mark, markersize=5)
        if banded:
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    if lost := _first_lost(series):
        axes.plot(x[lost - 1 : lost], y[lost - 1 : lost], "X", color=colour, markersize=10)
    return handle


def _first_lost(series: Series) -> int:
    """Index of the first value after a finite one that is not finite; 0 if there is none."""
    pairs = itertools.pairwise(series.y)
    return next((i for i, (a, b) in enumerate(pairs, 1) if _drawable(a) and not _drawable(b)), 0)


def _colours(curves: Sequence[Series]) -> list[tuple[Any, str]]:
    """A colour and a line style for each curve: one by one while they can be told apart, then by layer."""
    if len(curves) <= LEGEND_ROWS:
        styles = ("-", "--")
        return [(COLOURS[i % len(COLOURS)], styles[i // len(COLOURS) % 2]) for i in range(len(curves))]
    import matplotlib

    layers = _layers(curves)
    first, span = min(layers), (max(layers) - min(layers)) or 1
    return [(matplotlib.colormaps["cividis"]((layer - first) / span), "-") for layer in layers]


def _layers(curves: Sequence[Series]) -> list[int]:
    """The layer of each curve, or their order where some have none."""
    found = [series.where.layer for series in curves]
    return [layer for layer in found if layer is not None] if None not in found else list(range(len(curves)))


def _colour_bar(figure: Figure, axes: Axes, curves: Sequence[Series]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    layers = _layers(curves)
    named = "layer" if None not in [series.where.layer for series in curves] else "curve"
    scale = ScalarMappable(Normalize(min(layers), max(layers)), "cividis")
    figure.colorbar(scale, ax=axes, label=named, pad=0.02, ticks=MaxNLocator(integer=True))


def _scales(axes: Axes, curves: Sequence[Series]) -> None:
    """Logarithmic axes where the points are spaced so (contexts of 64, 128, 256 ...) or span orders of magnitude."""
    x = sorted({v for series in curves for v in series.x if _drawable(v)})
    y = [v for series in curves for v in series.y if _drawable(v)]
    if 3 <= len(x) <= FEW_POINTS and x[0] > 0 and all(b >= 1.4 * a for a, b in itertools.pairwise(x)):
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [f"{v:g}" for v in x])
        axes.set_xticks([], minor=True)
    if y and min(y) > 1 / LARGEST and max(y) / min(y) > 100:
        top = max([*y, *(v for series in curves for v in series.high if _drawable(v))])
        axes.set_ylim(min(y) / 2, 2 * top)  # given, not found: a band may reach down to zero
        axes.set_yscale("log")
    elif y:
        axes.ticklabel_format(axis="y", useOffset=False)


def _edges(columns: Sequence[float]) -> list[float]:
    """Borders of cells that have `columns` as their middles."""
    if len(columns) == 1:
        return [columns[0] - 0.5, columns[0] + 0.5]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(columns)]
    return [2 * columns[0] - middles[0], *middles, 2 * columns[-1] - middles[-1]]


def _frame(title: str, height: float, remark: str = "") -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_short(title, 90) + remark)
    return figure, axes


@contextlib.contextmanager
def _styled() -> Iterator[None]:
    """matplotlib's defaults and this module's style, whatever the user's own settings are."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; that is no news to whoever runs a gate.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # Numbers near the largest double leave no room for the margins of a frame; the picture is drawn all the same.
        warnings.filterwarnings("ignore", message="overflow encountered", category=RuntimeWarning)
        yield


def _x_name(title: str) -> str:
    """What the x axis counts, from the figure's name: "Y against X", a training curve, or positions."""
    _, against, name = title.rpartition(" against ")
    if against:
        return _cut(name, 40)
    return "training step" if "training" in title.lower() else "position"


def _y_name(title: str) -> str:
    return _cut(title.rpartition(" against ")[0] or title, 40)


def _place(where: Where) -> str:
    """'lstm, layer 1', in the fewest words.

    >>> _place(Where("lstm", 1))
    'lstm, layer 1'
    """
    bare = ("component", "state")
    return ", ".join(str(v) if key in bare else f"{key} {v}" for key, v in where.to_json().items())


def _with_unit(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit and unit != name and name != "training step" else name


def _short(text: str, most: int = 30) -> str:
    return _text(_cut(text, most))


def _cut(text: str, most: int) -> str:
    """At most `most` characters: the middle of a name says least."""
    shown, keep = visible(text), (most - 1) // 2
    return shown if len(shown) <= most else f"{shown[:keep]}…{shown[-keep:]}"


def _text(text: str) -> str:
    """A label that is only text: `$` starts no formula, a leading `_` hides no legend entry."""
    shown = visible(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _drawable(value: float) -> bool:
    """True for finite numbers that fit in a frame."""
    return abs(value) < LARGEST


def _finite(value: float) -> float:
    return value if _drawable(value) else math.nan
