"""Does attention help, is depth worth it, do groups and gamma matter? The validation matrix, run short.

    python -m studies.matrix collect --work FOLDER     runs of `studies.runs matrix` -> RESULTS
    python -m studies.matrix report                    RESULTS -> the tables of the page, and its picture

Every preset reads the same batches. Losses are compared on the same 16 held-out passages: the difference from the
preset that it varies (`COMPARED`) is taken passage by passage and seed by seed. It has two intervals, both Student's t:
over seeds (would another training come out so?), with the residuals of loss = preset + seed over the whole matrix,
since a few seeds of one preset alone tell too little; and over passages, of the mean over seeds (would another text?).
Each kind holds for all comparisons together at 95 % (Bonferroni). A difference is one where both leave out 0. Balance
is read off the training log: the geometric mean over the last ten logged steps, with a t-interval over seeds whose
spread is that of all presets.

Controls: `baseline` of two seeds against each other is what a difference of nothing looks like; and the loss after a
quarter of the steps is what a clear difference looks like.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from statecheck_reference.checkpointing import load_checkpoint
from statecheck_reference.corpus import open_corpus
from statecheck_reference.presets import MATRIX
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.streams import validation_windows
from statecheck_reference.training_log import read_log, significant
from torch.nn import functional

from studies.command import collect_or_report
from studies.intervals import LEVEL, Interval, mean, pooled, within
from studies.runs import MATRIX_SEEDS, folders

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "findings" / "validation_matrix.json"
PAGE = RESULTS.with_suffix(".md")
PICTURE = ROOT / "docs" / "images" / "validation_matrix.png"
COMPARED = {"pure-rwkv": "no-attention", "pure-mamba": "no-attention"}  # the others with `baseline`
Results = Mapping[str, Any]


def main() -> int:
    """Collect or report."""
    return collect_or_report("matrix", __doc__.splitlines()[0], RESULTS, collect, report)


def report(results: Results) -> Iterator[str]:
    """The tables of the page, which has the picture too."""
    picture(results, PICTURE)
    yield from tables(results)


def collect(work: Path) -> dict[str, Any]:
    """By preset, what each seed's run came to."""
    runs = folders("matrix", work)
    return {name: [run_of(runs[f"matrix-{name}-{seed}"]) for seed in MATRIX_SEEDS] for name in MATRIX}


def run_of(folder: Path) -> dict[str, Any]:
    """Parameters, loss of each held-out passage, and the balance of the components over the last ten logged steps."""
    rows = [row for row in read_log(folder / "training_log.jsonl") if "train_loss" in row]
    late = rows[-10:]
    passages, parameters = losses(folder)
    return {
        "parameters": parameters,
        "validation": [[row["step"], row["validation_loss"]] for row in rows if "validation_loss" in row],
        "passages": [significant(loss) for loss in passages],
        "train_loss": significant(float(np.mean([row["train_loss"] for row in late]))),
        "gradient_ratio": _late([row["gradient_ratio"] for row in late if "gradient_ratio" in row]),
        "update_ratio": _late(
            [
                row["relative_updates"]["rwkv"] / row["relative_updates"]["mamba"]
                for row in late
                if "gradient_ratio" in row
            ]
        ),
        "gate": [significant(value) for value in late[-1].get("gates", {}).values()],
        "tokens_per_second": float(np.median([row["tokens_per_second"] for row in rows])),
    }


def _late(values: Sequence[float]) -> float | None:
    return significant(float(np.exp(np.mean(np.log(values))))) if values else None


@torch.no_grad()
def losses(folder: Path) -> tuple[list[float], int]:
    """Loss of each held-out passage of the run's validation, in nats a token; and the number of parameters."""
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    settings = TrainingSettings(**json.loads(checkpoint["settings"]))
    model = settings.architecture.build(settings.shape)
    model.load_state_dict(checkpoint["weights"])
    windows = validation_windows(
        open_corpus(folder / "corpus"),
        rows=settings.validation_rows,
        length=settings.validation_length,
        window=settings.window,
    )
    model.eval()
    total = torch.zeros(settings.validation_rows, dtype=torch.float64)
    for inputs, targets in windows:
        nll = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="none")
        total += nll.view_as(targets).double().mean(1)
    return (total / len(windows)).tolist(), sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Difference:
    """Loss of one preset less that of `other`, in nats a token."""

    other: str
    over_seeds: Interval
    over_passages: Interval
    by_seed: tuple[float, ...]

    @property
    def intervals(self) -> tuple[Interval, Interval]:
        return self.over_seeds, self.over_passages

    @property
    def clear(self) -> bool:
        """True if both intervals lie on one side of 0."""
        return all(found.low * found.high > 0 for found in self.intervals)


def difference(results: Results, name: str) -> Difference:
    """What preset `name` has more than the one that it varies, of the same seeds on the same passages."""
    other = COMPARED.get(name, "baseline")
    pairs = zip(results[name], results[other], strict=True)
    by_seed = np.array([np.subtract(one["passages"], two["passages"]) for one, two in pairs])  # (seeds, passages)
    over_passages = mean(by_seed.mean(0).tolist(), _level(results))
    return Difference(other, _over_seeds(results, name, other), over_passages, tuple(by_seed.mean(1).tolist()))


def _level(results: Results) -> float:
    """Of one comparison, where all but `baseline` are compared with one other."""
    return 1 - (1 - LEVEL) / (len(results) - 1)


def _over_seeds(results: Results, name: str, other: str) -> Interval:
    """The difference of two presets in the additive model loss = preset + seed, with the residuals of all presets."""
    names = list(results)
    loss = np.array([[np.mean(run["passages"]) for run in results[one]] for one in names])  # (presets, seeds)
    residuals = loss - loss.mean(0) - loss.mean(1, keepdims=True) + loss.mean()
    freedom = (loss.shape[0] - 1) * (loss.shape[1] - 1)
    error = math.sqrt(float((residuals**2).sum()) / freedom * 2 / loss.shape[1])
    value = float((loss[names.index(name)] - loss[names.index(other)]).mean())
    return within(value, float(stats.t.ppf(0.5 + _level(results) / 2, freedom)) * error)


def tables(results: Results) -> Iterator[str]:
    """The lines of the table, in markdown."""
    columns = ["preset", "parameters", "validation loss", "less that of", "over seeds", "over passages", "by seed"]
    columns += ["RWKV/Mamba gradient", "relative update", "gate"]
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    balances = [_balances(results, key) for key in ("gradient_ratio", "update_ratio")]
    for name, runs in results.items():
        size = f"{runs[0]['parameters'] / 1e6:.2f}M"
        loss = f"{np.mean([np.mean(run['passages']) for run in runs]):.3f}"
        against = ["-"] * 4 if name == "baseline" else _against(difference(results, name))
        balance = [str(found.get(name, "-")) for found in balances]
        gate = f"{np.mean([run['gate'] for run in runs]):.2f}" if runs[0]["gate"] else "-"
        yield f"| {' | '.join([name, size, loss, *against, *balance, gate])} |"
    yield ""
    yield _controls(results["baseline"])


def _against(found: Difference) -> list[str]:
    """The cells of a comparison: with what, the two intervals, bold where both are clear of 0, and each seed."""
    mark = "**" if found.clear else ""
    intervals = [f"{mark}{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]{mark}" for one in found.intervals]
    return [found.other, *intervals, ", ".join(f"{value:+.3f}" for value in found.by_seed)]


def _controls(baseline: Sequence[Mapping[str, Any]]) -> str:
    first, second = baseline[:2]
    nothing = mean(np.subtract(first["passages"], second["passages"]).tolist())
    early = float(np.mean([loss for run in baseline for step, loss in run["validation"] if step == 100]))
    late = float(np.mean([loss for run in baseline for loss in run["passages"]]))
    return f"controls: baseline of seed 0 less seed 1: {nothing}; after 100 steps less after 400: {early - late:.3f}"


def _balances(results: Results, key: str) -> dict[str, Interval]:
    """By preset, RWKV over Mamba; pure models have no such ratio."""
    values = {name: [run[key] for run in runs] for name, runs in results.items()}
    return pooled({name: own for name, own in values.items() if None not in own})


def picture(results: Results, path: Path) -> None:
    """The difference of each preset from the one that it varies, with its intervals, and each seed."""
    names = [name for name in results if name != "baseline"]
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        found = difference(results, name)
        kinds = {"over seeds": (-0.15, "tab:blue", found.over_seeds)}
        kinds["over passages"] = (0.15, "tab:green", found.over_passages)
        for label, (shift, colour, one) in kinds.items():
            axes.plot(
                [one.low, one.high], [row + shift] * 2, color=colour, linewidth=2, label=label if row == 0 else None
            )
        axes.plot(found.by_seed, [row - 0.15] * len(found.by_seed), "o", color="tab:orange", markersize=4)
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(names)), [f"{name} - {difference(results, name).other}" for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="difference of validation loss, nats a token (95 % for all together; dots: seeds)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    sys.exit(main())
