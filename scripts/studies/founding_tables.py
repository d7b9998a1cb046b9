"""Tables and the picture of the founding observation, from its recorded results."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.intervals import Interval, geometric, quotient

OBSERVED_ONCE = {"characters": (0.08, 0.11), "byte-pairs": (0.20, 0.46)}
AT = (100, 300, 500, 1000)
# Steps of characters that are compared at equal bytes: the hundred steps of byte pairs until there are past warm-up.
AT_EQUAL_BYTES = (700, 1000)
COLOURS = {"characters": "tab:orange", "byte-pairs": "tab:blue"}
Results = Mapping[str, Any]
Run = Mapping[str, Any]


def tables(results: Results) -> Iterator[str]:
    """The lines of all tables, in markdown."""
    yield from _balance(results, "gradient norm of RWKV over Mamba's (raw, before clipping)", _ratio, against=True)
    yield ""
    yield from _balance(results, "relative update of RWKV over Mamba's", _updates, against=False)
    yield ""
    yield from _equal_bytes(results, "gradient norms", _ratio, against=True)
    yield ""
    yield from _equal_bytes(results, "relative updates", _updates, against=False)
    yield ""
    yield from _norms(results)
    yield ""
    yield from _growths(results, "by the slope over the layers", growth)
    yield ""
    yield from _growths(results, "from the first layer to the last", end_to_end)
    yield ""
    yield from _controls(results)


def around(run: Run, values: Sequence[float], step: int) -> float:
    """The geometric mean of the ten values that were logged up to `step`."""
    chosen = [value for at, value in zip(run["step"], values, strict=True) if step - 100 < at <= step]
    return math.exp(float(np.mean(np.log(chosen))))


def _ratio(run: Run, step: int) -> float:
    return around(run, run["gradient_ratio"], step)


def _updates(run: Run, step: int) -> float:
    by = run["relative_update"]
    return around(run, [a / b for a, b in zip(by["rwkv"], by["mamba"], strict=True)], step)


def _balance(results: Results, title: str, read: Callable[[Run, int], float], *, against: bool) -> Iterator[str]:
    yield f"| {title}, at equal steps | characters | byte pairs | byte pairs / characters |"
    yield "|---|---|---|---|"
    for step in AT:
        own = {name: [read(run, step) for run in runs] for name, runs in results["runs"].items()}
        cells = [_against(geometric(values), name if against else "") for name, values in own.items()]
        yield f"| step {step} | {' | '.join(cells)} | {quotient(own['byte-pairs'], own['characters'])} |"


def _against(found: Interval, units: str) -> str:
    """An interval, and where it lies against what was observed once."""
    return f"{found} ({found.inside(*OBSERVED_ONCE[units])})" if units else str(found)


def equal_bytes(results: Results, step: int) -> int:
    """The step at which a run on byte pairs has read as many bytes as one on characters after `step`."""
    per_token = results["bytes_per_token"]
    return round(step * per_token["characters"] / per_token["byte-pairs"] / 10) * 10


def _equal_bytes(results: Results, title: str, read: Callable[[Run, int], float], *, against: bool) -> Iterator[str]:
    yield f"| {title}, RWKV over Mamba, at equal bytes | characters | byte pairs | byte pairs / characters |"
    yield "|---|---|---|---|"
    per_step = results["tokens_per_step"] * results["bytes_per_token"]["characters"]
    for step in AT_EQUAL_BYTES:
        other = equal_bytes(results, step)
        own = {
            name: [read(run, step if name == "characters" else other) for run in runs]
            for name, runs in results["runs"].items()
        }
        cells = [_against(geometric(values), name if against else "") for name, values in own.items()]
        place = f"{step * per_step / 1e6:.2f} MB: step {step} of characters, {other} of byte pairs"
        yield f"| {place} | {' | '.join(cells)} | {quotient(own['byte-pairs'], own['characters'])} |"


def _columns(results: Results, title: str) -> Iterator[str]:
    """The head of a table with a column for each component and kind of token."""
    columns = [f"{spoken(units)}, {name}" for name in ("RWKV", "Mamba") for units in results["runs"]]
    yield f"| {title} | {' | '.join(columns)} |"
    yield "|---|---|---|---|---|"


def _norms(results: Results) -> Iterator[str]:
    yield from _columns(results, "gradient norm, before clipping")
    for step in AT:
        cells = [
            str(geometric([around(run, run["gradient_norm"][component], step) for run in runs]))
            for component in ("rwkv", "mamba")
            for runs in results["runs"].values()
        ]
        yield f"| step {step} | {' | '.join(cells)} |"


def _growths(results: Results, title: str, read: Callable[[Sequence[float]], float]) -> Iterator[str]:
    yield from _columns(results, f"variance of the state, times a layer, {title}")
    for step in AT:
        cells = [
            str(geometric([read(run["variance"][str(step)][component]) for run in runs]))
            for component in ("rwkv", "mamba")
            for runs in results["runs"].values()
        ]
        yield f"| step {step} | {' | '.join(cells)} |"


def growth(values: Sequence[float]) -> float:
    """How many times larger a value is a layer further on: from the slope of its logarithm over the layers.

    >>> round(growth([1.0, 2.0, 4.0]), 6)
    2.0
    """
    return math.exp(float(np.polyfit(np.arange(len(values)), np.log(np.asarray(values)), 1)[0]))


def end_to_end(values: Sequence[float]) -> float:
    """How many times larger a value is a layer further on, from the first and the last alone.

    >>> end_to_end([1.0, 100.0, 4.0])
    2.0
    """
    return (values[-1] / values[0]) ** (1 / (len(values) - 1))


def _controls(results: Results) -> Iterator[str]:
    yield "| control | characters | byte pairs | expected |"
    yield "|---|---|---|---|"
    of_growth = ("growth in other coordinates", "growth", "4, exactly")
    of_ratio = ("ratio with a tenth of RWKV's gradient", "ratio", "about 0.1")
    turned = ("ratio in other coordinates", "ratio", "1 if the ratio were one of functions")
    for above, below, expected in (of_growth, of_ratio, turned):
        cells = [
            str(geometric([run["controls"][above] / run["controls"][below] for run in runs]))
            for runs in results["runs"].values()
        ]
        yield f"| {above}, over {below} | {' | '.join(cells)} | {expected} |"


def picture(results: Results, path: Path) -> None:
    """The gradient ratio over steps and over bytes, every seed, with what was observed once."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    by_steps, by_bytes = figure.subplots(1, 2, sharey=True)
    for axes, of_bytes in ((by_steps, False), (by_bytes, True)):
        for name, runs in results["runs"].items():
            scale = results["tokens_per_step"] * results["bytes_per_token"][name] / 1e6 if of_bytes else 1.0
            _curves(axes, name, runs, scale)
        axes.set(xlabel="text read, MB" if of_bytes else "step", yscale="log")
        axes.grid(alpha=0.25)
    by_steps.set_ylabel("gradient norm, RWKV / Mamba")
    by_steps.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _curves(axes: Axes, name: str, runs: Sequence[Run], scale: float) -> None:
    low, high = OBSERVED_ONCE[name]
    axes.axhspan(low, high, color=COLOURS[name], alpha=0.12, label=f"observed once, {spoken(name)}")
    for number, run in enumerate(runs):
        x = [step * scale for step in run["step"]]
        label = f"{spoken(name)}, {len(runs)} seeds" if number == 0 else None
        axes.plot(x, run["gradient_ratio"], color=COLOURS[name], linewidth=0.9, alpha=0.8, label=label)


def spoken(units: str) -> str:
    """The name of units in running text."""
    return units.replace("-", " ")
