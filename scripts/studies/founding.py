"""Is the imbalance of the components the tokenizer's? The founding observation, measured again.

    python -m studies.founding collect --work FOLDER    runs of `studies.runs founding` -> RESULTS
    python -m studies.founding report                   RESULTS -> the tables of the page, and its picture

What was observed once: with characters the gradient of RWKV is 0.08 to 0.11 of Mamba's, with byte pairs 0.20 to 0.46;
and the variance of RWKV's state grows 1.27 times a layer (an amplifier) while that of Mamba's shrinks (a damper).

Measured here: `gradient_ratio` and `relative_updates` of the training log, as the geometric mean over the ten logged
steps up to a step; intervals are Student's t over seeds, of logarithms. At equal bytes a run on characters is compared
with the step at which the run on byte pairs had read as many bytes; the warm-up is equal in steps, not in bytes.
Variance: of the numbers of one state, after 256 tokens of held-out text, mean over passages; its growth a layer is the
slope of its logarithm over the layers.

Positive controls: the same model written in other coordinates (the keys of layer n times 2^n, the receptances over it,
so that not a bit of the output changes) must grow 4 times as fast; and where only a tenth of the gradient passes the
end of each RWKV branch, at the same outputs, the ratio must be about a tenth. What the other coordinates do to the
ratio of the same function is reported beside them.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from statecheck_reference import diagnostics
from statecheck_reference.checkpointing import kept_checkpoint, load_checkpoint
from statecheck_reference.corpus import bytes_per_token, open_corpus
from statecheck_reference.models import MODELS, LanguageModel
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.streams import validation_windows
from statecheck_reference.training_log import read_log, significant
from torch.nn import functional

from studies.command import collect_or_report
from studies.founding_tables import AT as KEPT
from studies.founding_tables import growth, picture, tables
from studies.runs import FOUNDING_SEEDS, UNITS, folders

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "findings" / "founding_observation.json"
PAGE = RESULTS.with_suffix(".md")
PICTURE = ROOT / "docs" / "images" / "founding_observation.png"
CURVES = ("train_loss", "gradient_ratio")
CONTROL = 0.1  # of the gradient passes RWKV's branches in the second control


def main() -> int:
    """Collect or report."""
    return collect_or_report("founding", __doc__.splitlines()[0], RESULTS, collect, report)


def report(results: dict[str, Any]) -> Iterator[str]:
    """The tables of the page, which has the picture too."""
    picture(results, PICTURE)
    yield from tables(results)


def collect(work: Path) -> dict[str, Any]:
    """All that the tables need of the runs in `work`, as JSON can hold it."""
    runs = folders("founding", work)
    units = {name: [runs[f"finding-{name}-{seed}"] for seed in FOUNDING_SEEDS] for name in UNITS}
    return {
        "bytes_per_token": {
            name: bytes_per_token(open_corpus(own[0] / "corpus"))["training"] for name, own in units.items()
        },
        "tokens_per_step": 8 * 256,
        "runs": {name: [run_of(folder) for folder in own] for name, own in units.items()},
    }


def run_of(folder: Path) -> dict[str, Any]:
    """The curves of one run, and what its kept checkpoints say of the states."""
    rows = [row for row in read_log(folder / "training_log.jsonl") if "gradient_ratio" in row]
    updates = [row["relative_updates"] for row in rows]
    return {
        "step": [row["step"] for row in rows],
        **{name: [row[name] for row in rows] for name in CURVES},
        "gradient_norm": {name: [row["gradient_norms"][name] for row in rows] for name in ("rwkv", "mamba")},
        "relative_update": {name: [update[name] for update in updates] for name in ("rwkv", "mamba")},
        "validation": [
            [row["step"], row["validation_loss"]]
            for row in read_log(folder / "training_log.jsonl")
            if "validation_loss" in row
        ],
        "variance": {str(step): variances(model_at(folder, step), folder) for step in KEPT},
        "controls": controls(folder),
    }


def model_at(folder: Path, step: int) -> LanguageModel:
    """The model of a kept checkpoint."""
    checkpoint = load_checkpoint(folder, kept_checkpoint(step))
    if checkpoint is None:
        raise FileNotFoundError(f"{folder.name}: expected {kept_checkpoint(step)}, found none")
    settings = TrainingSettings(**json.loads(checkpoint["settings"]))
    model = settings.architecture.build(settings.shape)
    model.load_state_dict(checkpoint["weights"])
    return model.eval()


@torch.no_grad()
def variances(model: LanguageModel, folder: Path) -> dict[str, list[float]]:
    """By component, the variance of the numbers of each layer's state, mean over held-out passages of 256 tokens."""
    inputs, _ = passages(folder)[0]
    model.set_states(None)
    model(inputs)
    states = model.get_states()
    found: dict[str, list[float]] = {}
    for component, name in (("rwkv", "wkv"), ("mamba", "ssm")):
        layers = [states[f"blocks.{n}.{component}.{name}"] for n in range(len(states) // 4)]
        found[component] = [significant(float(state.double().flatten(1).var(1).mean())) for state in layers]
    return found


def passages(folder: Path) -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
    """Sixteen held-out passages, in one window of 256 tokens."""
    return validation_windows(open_corpus(folder / "corpus"), rows=16, length=256, window=256)


def controls(folder: Path) -> dict[str, Any]:
    """What the measurements say of models whose answer is known, and of the last checkpoint that these were made of."""
    model = model_at(folder, KEPT[-1])
    plain, ratio = variances(model, folder), ratio_of(model, folder)
    with torch.no_grad():
        for n, block in enumerate(model.blocks):  # type: ignore[arg-type]
            block.rwkv.key.weight.mul_(2.0**n)
            block.rwkv.receptance.weight.mul_(2.0**-n)
    turned, ratio_turned = variances(model, folder), ratio_of(model, folder)
    damped = model_at(folder, KEPT[-1])
    for block in damped.blocks:  # type: ignore[union-attr]
        block.rwkv.register_forward_hook(_damp)
    return {
        "growth": significant(growth(plain["rwkv"])),
        "growth in other coordinates": significant(growth(turned["rwkv"])),
        "ratio": significant(ratio),
        "ratio in other coordinates": significant(ratio_turned),
        "ratio with a tenth of RWKV's gradient": significant(ratio_of(damped, folder)),
    }


def _damp(module: torch.nn.Module, inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
    """As a forward hook: what the layer gives out is as it was, and its gradient a tenth."""
    outputs[0].register_hook(lambda gradient: CONTROL * gradient)


def ratio_of(model: LanguageModel, folder: Path) -> float:
    """The gradient ratio on held-out passages, as the training log has it."""
    inputs, targets = passages(folder)[0]
    model.set_states(None)
    model.zero_grad()
    functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
    parts = diagnostics.parts_by_component(model, MODELS["hybrid"].declared({}).components)
    norms = diagnostics.gradient_norms(parts)
    return norms["rwkv"] / norms["mamba"]


if __name__ == "__main__":
    sys.exit(main())
