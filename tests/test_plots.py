"""Pictures: what is drawn where, that labels cover and mean nothing, and that equal numbers give equal bytes."""

from __future__ import annotations

import hashlib
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from report_cases import NASTY, bare, item, nasty, part, passing, rms

from statecheck import plots
from statecheck.verdict import Bound, Series, Status, Verdict, Where

P, F = Status.PASS, Status.FAIL


def carrier(*series: Series) -> Verdict:
    return Verdict("D1", P, "fine", series=series)


def points(name: str, x: tuple[float, ...], y: tuple[float, ...], **more: object) -> Series:
    return Series(name, "one", x, y, **more)  # type: ignore[arg-type]


CONTEXTS = (64.0, 128.0, 256.0, 512.0, 1024.0)
RATIO = points("perplexity ratio against context", CONTEXTS, (1, 0.95, 0.9, 0.92, 1.1), low=(1, 0.9, 0.8, 0.8, 1.0),
               high=(1, 1.0, 1.0, 1.0, 1.3))  # fmt: skip


def test_series_are_grouped_by_name() -> None:
    found = plots.figures([carrier(*rms("state RMS", 2), RATIO), carrier(*rms("state RMS", 1, prefix="more "))])
    assert list(found) == ["state-rms.png", "state-rms-map.png", "perplexity-ratio-against-context.png"]
    assert len(found["state-rms.png"].axes[0].get_lines()) == 3


def test_layers_on_one_axis_get_a_heat_map() -> None:
    found = plots.figures([carrier(*rms("state RMS", 3))])
    assert list(found) == ["state-rms.png", "state-rms-map.png"]
    names = [label.get_text() for label in found["state-rms-map.png"].axes[0].get_yticklabels()]
    assert names == ["state 0", "state 1", "state 2"]


@pytest.mark.parametrize(
    "curves",
    [
        rms("x", 1),
        (*rms("x", 1), *rms("x", 1)),
        (rms("x", 2)[0], RATIO),
        tuple(Series("x", str(i), s.x, s.y) for i, s in enumerate(rms("x", 2))),
    ],
)
def test_what_is_no_table_gets_no_heat_map(curves: tuple[Series, ...]) -> None:
    assert not plots.by_layer(curves)


def test_numbers_stand_where_they_are_drawn() -> None:
    line = plots.lines("state RMS", rms("state RMS", 1)).axes[0].get_lines()[0]
    assert list(line.get_xdata()) == list(rms("x", 1)[0].x)
    assert list(line.get_ydata()) == list(rms("x", 1)[0].y)


def test_few_points_have_error_bars_on_a_logarithmic_axis() -> None:
    axes = plots.lines(RATIO.name, [RATIO]).axes[0]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "128", "256", "512", "1024"]
    (bars,) = axes.containers
    assert [round(float(segment[1][1]), 6) for segment in bars[2][0].get_segments()] == [1, 1, 1, 1, 1.3]


def test_unevenly_traced_positions_stay_on_a_linear_axis() -> None:
    x = (8.0, 16.0, 32.0, 48.0, *range(57, 65), 128.0, 192.0, *range(249, 257))
    assert plots.lines("state RMS", [points("state RMS", x, x)]).axes[0].get_xscale() == "linear"


@pytest.mark.parametrize(
    ("name", "unit", "x", "y"),
    [
        ("state RMS", "tokens", "position (tokens)", "state RMS"),
        ("cosine against lag", "tokens", "lag (tokens)", "cosine"),
        ("training loss", "steps", "training step", "training loss (nats)"),
    ],
)
def test_axes_say_what_they_count_and_in_which_unit(name: str, unit: str, x: str, y: str) -> None:
    y_unit = "nats" if "loss" in name else ""
    axes = plots.lines(name, [points(name, (1, 2, 3), (1, 2, 3), x_unit=unit, y_unit=y_unit)]).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (x, y)


def test_orders_of_magnitude_get_a_logarithm() -> None:
    exploding = points("state RMS", tuple(range(20)), tuple(2.0**i for i in range(20)))
    assert plots.lines("state RMS", [exploding]).axes[0].get_yscale() == "log"
    assert plots.lines("state RMS", rms("x", 1)).axes[0].get_yscale() == "linear"


def test_the_last_finite_value_is_marked() -> None:
    lost = points("state RMS", tuple(range(20)), tuple(1.0 if i < 13 else math.inf for i in range(20)))
    axes = plots.lines("state RMS", [lost]).axes[0]
    crosses = [line for line in axes.get_lines() if line.get_marker() == "X"]
    assert [(list(c.get_xdata()), list(c.get_ydata())) for c in crosses] == [([12.0], [1.0])]
    assert "cross: last finite value" in axes.get_title(loc="left")


def test_a_legend_covers_no_data_and_nothing_is_cut_off() -> None:
    long = tuple(Series("x", f"blocks.{i}.a.very.long.name.of.a.state", s.x, s.y) for i, s in enumerate(rms("x", 12)))
    figure = plots.lines("state RMS", long)
    plots.png(figure)
    axes = figure.axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 12
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
    inside = figure.get_tightbbox().padded(-0.01)
    assert figure.bbox_inches.x0 <= inside.x0
    assert inside.x1 <= figure.bbox_inches.x1


def test_many_curves_are_coloured_by_layer_with_a_bar() -> None:
    figure = plots.lines("state RMS", rms("state RMS", 24))
    assert figure.axes[0].get_legend() is None
    assert figure.axes[1].get_ylabel() == "layer"
    assert len({line.get_color() for line in figure.axes[0].get_lines()}) == 24


@pytest.mark.parametrize("label", ["$x^2$", "$", "\\$", "_hidden", NASTY, "x" * 500, "$\\frac{$"])
def test_labels_are_only_text(label: str) -> None:
    series = Series(label, label, (0, 1, 2), (1, 2, 3), x_unit=label, y_unit=label)
    figure = plots.lines(label, [series, series])
    assert len(plots.png(figure)) > 1000
    assert figure.axes[0].get_legend() is not None
    assert len(figure.axes[0].get_legend().get_texts()) == 2  # type: ignore[union-attr]


def test_pictures_are_900_pixels_wide() -> None:
    width, height = struct.unpack(">II", plots.png(plots.lines("x", [RATIO]))[16:24])
    assert (width, height) == (900, 420)


# Heat maps


def test_a_heat_map_has_one_cell_a_number() -> None:
    figure = plots.heatmap([[1, 2, 3], [4, 5, math.nan]], ["a", "b"], [0, 16, 32], title="x")
    mesh = figure.axes[0].collections[0]
    assert [float(v) for v in mesh.get_array().ravel()[:5]] == [1, 2, 3, 4, 5]  # type: ignore[union-attr]
    assert list(mesh.get_array().mask.ravel()) == [False] * 5 + [True]  # type: ignore[union-attr]
    edges = mesh.get_coordinates()  # type: ignore[attr-defined]
    assert [float(x) for x in edges[0, :, 0]] == [-8, 8, 24, 40]


@pytest.mark.parametrize(
    ("values", "rows", "columns"), [([], [], [1]), ([[1]], ["a"], [1, 2]), ([[1]], ["a", "b"], [1])]
)
def test_a_table_that_does_not_fit_is_refused(values: list[list[float]], rows: list[str], columns: list[float]) -> None:
    with pytest.raises(ValueError, match="heatmap: expected"):
        plots.heatmap(values, rows, columns, title="x")


# The gate's margins


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (1.0, ["< 2"], 2.0),
        (8.0, ["< 2"], 0.25),
        (0.35, ["> 0.7"], 0.5),
        (1.0, ["> 0.2", "< 3"], 3.0),
        (6.0, ["> 0.2", "< 3"], 0.5),
        (0.0, ["< 2"], 1000.0),
        (0.0, ["> 2"], 0.001),
        (-1.0, ["> 2"], 0.001),
        (1e9, ["< 2"], 0.001),
    ],
)
def test_margin_is_how_many_times_on_the_safe_side(value: float, bounds: list[str], expected: float) -> None:
    assert plots.margin(value, [Bound.parse(text) for text in bounds]) == pytest.approx(expected)


def test_margins_show_what_has_a_ratio() -> None:
    rows = [
        item(part("D1.growth", F, 12, 10.5, 14), part("D1.nonfinite", P, 0, passes="< 0.5", fails="> 0.5")),
        item(part("D4.benefit", P, 0.1, 0.05, 0.2, passes="> 0", fails="")),
        bare("D3", Status.NOT_APPLICABLE, "one component"),
        item(part("D2.x", F, math.nan)),
    ]
    figure = plots.margins(rows)
    assert figure is not None
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["D1.growth  lstm, layer 1", "D1.nonfinite  lstm, layer 1"]


def test_without_numbers_there_is_no_picture_of_the_gate() -> None:
    assert plots.figures([bare("D3", Status.SKIP, "x")]) == {}


# Files


def test_file_names_are_plain_and_distinct() -> None:
    names = ["../../etc/passwd", "a b", "a-b", "A B", "gate", "", "é", "x-map", "x", NASTY, "n" * 300]
    files = plots.file_names(names)
    assert len(set(files.values())) == len(names)
    assert all(set(file) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and len(file) < 70 for file in files.values())
    assert "gate" not in files.values()


def test_no_picture_overwrites_another() -> None:
    found = plots.figures([carrier(*rms("x", 2), *rms("x map", 2), *rms("gate", 2)), *passing()])
    assert sorted(found) == sorted({"gate.png", "gate-2.png", "gate-2-map.png", "x.png", "x-map.png"} | {
        "x-map-2.png", "x-map-2-map.png"})  # fmt: skip


CODE = """
import hashlib
from report_cases import nasty
from statecheck import plots
for name, figure in plots.figures(nasty()).items():
    print(name, hashlib.sha256(plots.png(figure)).hexdigest())
import sys
assert "matplotlib.pyplot" not in sys.modules, "pyplot keeps global state"
"""


def test_bytes_depend_on_neither_process_nor_the_users_settings(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 20\naxes.facecolor: red\nsavefig.dpi: 50\n")
    settings = {"MATPLOTLIBRC": str(tmp_path), "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, **settings}, capture_output=True, text=True, check=True
    )
    here = {name: hashlib.sha256(plots.png(figure)).hexdigest() for name, figure in plots.figures(nasty()).items()}
    assert dict(line.split() for line in done.stdout.splitlines()) == here
    assert len(here) == 3


ANY = st.floats(allow_nan=True, allow_infinity=True)
CURVES = st.lists(ANY, max_size=5).map(tuple)


@settings(
    max_examples=12, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
)  # shrinking is slow
@example([Series("x", "", (-1.7e308, 1.7e308), (1.7e308, -1.7e308))])
@example([Series("x", "", (0, 1), (1e-320, 1e149)), Series("x", "", (0, 1), (-1e149, 0))])
@example([Series("x", "", (0, 1), (1e-149, 1e149), (0, 1e-320), (1, 1e149))])
@example([Series("x", "", (0, 1, 2), (1, 2), (1, 2), (3, 1))])
@given(
    st.lists(
        st.builds(Series, st.just("x"), st.text(max_size=5), CURVES, CURVES, CURVES, CURVES), min_size=1, max_size=3
    )
)
def test_no_numbers_break_a_picture(curves: list[Series]) -> None:
    for figure in plots.figures([carrier(*curves)]).values():
        assert plots.png(figure).startswith(b"\x89PNG")


def test_nothing_finite_is_no_picture() -> None:
    assert plots.figures([carrier(points("x", (0, 1), (math.nan, math.inf)))]) == {}


def test_places_are_named_shortly() -> None:
    assert plots.heatmap([[1]], ["x"], [0], title="t").axes[0].get_yticklabels()[0].get_text() == "x"
    unnamed = Series("x", "", (0, 1), (1, 2), where=Where("lstm", 1))
    legend = plots.lines("x", [unnamed, unnamed]).axes[0].get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text() == "lstm, layer 1"


def test_layers_are_whole_numbers() -> None:
    shares = Series("share against layer", "rwkv", (0.0, 1.0), (0.2, 0.8), x_unit="layer")
    figure = plots.lines(shares.name, [shares])
    assert [tick for tick in figure.axes[0].get_xticks() if 0 <= tick <= 1] == [0.0, 1.0]
