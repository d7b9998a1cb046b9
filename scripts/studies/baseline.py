"""What is normal for the 8M model? The judged numbers of the shipped weights, with the spread between short seeds.

    python -m studies.baseline collect --work FOLDER    runs of `studies.runs seeds`, checked -> RESULTS
    python -m studies.baseline report                   RESULTS and METRICS -> the table of the page

METRICS is what `statecheck baseline reference --out metrics/baseline_8m_metrics.json` writes. `collect` exports each
short run and checks it as `statecheck run` does. Low and high are how far a second model may lie from the shipped one
by its seed alone, at 95 %: Student's t with the spread of the short seeds (of logarithms where all values are
positive), for the difference of two single models. The short runs are another recipe: 500 steps with a warm-up of 100,
not 10,000 with one of 500. What is assumed is that the spread is of the same size there.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from studies.command import collect_or_report
from studies.runs import folders

ROOT = Path(__file__).resolve().parents[2]
METRICS = ROOT / "metrics" / "baseline_8m_metrics.json"
RESULTS = ROOT / "metrics" / "baseline_8m_seeds.json"
PAGE = ROOT / "docs" / "baseline_metrics.md"
SHIPPED = ROOT / "reference_models" / "statecheck_reference"
KEPT = ("name", "where", "value")  # of a short seed's number: its verdict is nobody's
Metric = Mapping[str, Any]
#: Where a number can't lie beyond, a range is cut. Others with a unit "of ..." are shares, from 0 to 1.
BOUNDS = {"G3.5.cosine": (-1.0, 1.0), "health.score": (0.0, 1.0)}


def main() -> int:
    """Collect or report."""
    return collect_or_report("baseline", __doc__.splitlines()[0], RESULTS, collect, tables)


def tables(seeds: Mapping[str, Sequence[Metric]]) -> Iterator[str]:
    """The table of the page: the numbers of the shipped weights, and how far seeds spread."""
    yield from table(json.loads(METRICS.read_text())["metrics"], seeds)


def collect(work: Path) -> dict[str, list[Metric]]:
    """By run, the judged numbers of the model that it ended with; what was checked already is not checked again."""
    found: dict[str, list[Metric]] = {}
    for name, folder in folders("seeds", work).items():
        out, metrics = folder / "shipped", folder / "metrics.json"
        if not metrics.is_file():
            _run(
                "statecheck_reference.cli",
                "export",
                "--work",
                str(folder),
                "--out",
                str(out),
                "--precision",
                "bfloat16",
            )
            words = ["baseline", str(out), "--data", str(SHIPPED / "text"), "--out", str(metrics)]
            _run("statecheck", *words, "--run", str(folder / "run"))
        read = json.loads(metrics.read_text())["metrics"]
        found[name] = [{key: one[key] for key in KEPT} for one in read if "value" in one]
    return found


def _run(module: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", module, *words], check=True, stdout=subprocess.DEVNULL)


def table(shipped: Sequence[Metric], seeds: Mapping[str, Sequence[Metric]]) -> Iterator[str]:
    """The lines of the table, in markdown; a number that some seed lacks has no spread."""
    columns = ["number", "asked", "low", "ok: the shipped weights", "high", "seeds, 500 steps"]
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    short = [named(own) for own in seeds.values()]
    for name, metric in named(shipped).items():
        values = [own[name]["value"] for own in short if name in own]
        complete = len(values) == len(short)
        ends = [f"{end:.3g}" for end in cut(metric, around(metric["value"], values))] if complete else ["-", "-"]
        shown = ", ".join(f"{value:.3g}" for value in values)
        own = f"{metric['value']:.3g} [{metric['low']:.3g}, {metric['high']:.3g}] {metric['status']}"
        yield f"| {name} | {', '.join(metric['asked'])} | {ends[0]} | {own} | {ends[1]} | {shown} |"


def named(metrics: Sequence[Metric]) -> dict[str, Metric]:
    """Those that have a value, by name; with the place where one name stands for several places, as S4 has."""
    valued = [metric for metric in metrics if "value" in metric]
    names = [metric["name"] for metric in valued]
    return {one["name"] if names.count(one["name"]) == 1 else f"{one['name']}, {one['where']}": one for one in valued}


def cut(metric: Metric, ends: tuple[float, float]) -> tuple[float, float]:
    """The ends of a range, cut where the number itself ends."""
    share = metric["unit"].startswith("of ")
    low, high = BOUNDS.get(metric["name"], (0.0, 1.0) if share else (-math.inf, math.inf))
    return max(ends[0], low), min(ends[1], high)


def around(value: float, seeds: Sequence[float]) -> tuple[float, float]:
    """Where a second model lies with a probability of 95 %, if one is at `value` and both spread as `seeds` do.

    By hand: 1, 2, 3 have a standard deviation of 1, t(2) is 4.303, and 4.303 * sqrt(2) = 6.085.

    >>> [round(end, 3) for end in around(0.0, [1.0, 2.0, 3.0])]
    [-6.085, 6.085]
    """
    logarithms = value > 0 and min(seeds) > 0
    x = np.log(np.asarray(seeds)) if logarithms else np.asarray(seeds, dtype=float)
    reach = float(stats.t.ppf(0.975, len(x) - 1)) * float(x.std(ddof=1)) * math.sqrt(2)
    return (value * math.exp(-reach), value * math.exp(reach)) if logarithms else (value - reach, value + reach)


if __name__ == "__main__":
    sys.exit(main())
