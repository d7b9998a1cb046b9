"""The first gates of a run: G1 the forward pass is finite, G2 the untrained output is undecided, G3 the loss falls.

They cost nothing and stand in the training log. A model that fails one of them is not worth a day of training: without
G1 the run ends at once, without one of the others it goes on, and says so.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from statecheck_reference.models import LanguageModel

UNDECIDED = 0.95  # of log V: the least entropy of an untrained output
G3_STEPS = 1_000  # the loss must have fallen by then
Check = dict[str, Any]


@torch.no_grad()
def check_untrained(model: LanguageModel, inputs: Tensor) -> dict[str, Check]:
    """G1 and G2 of a model without history on `inputs` (batch, time), which is left without history."""
    logits = model(inputs)
    states = model.get_states()
    model.set_states(None)
    finite = bool(logits.isfinite().all()) and all(bool(state.isfinite().all()) for state in states.values())
    log_shares = logits.float().log_softmax(-1)  # (B, T, V)
    entropy = float(-(log_shares.exp() * log_shares).sum(-1).mean())
    share = entropy / math.log(logits.shape[-1])
    return {
        "G1": {"finite": finite, "passed": finite},
        "G2": {"entropy_share": share if math.isfinite(share) else None, "passed": share >= UNDECIDED},
    }


def check_falling(rows: Sequence[Mapping[str, Any]]) -> dict[str, Check]:
    """G3: the mean training loss of the last tenth of the log's `rows` against that of the first tenth.

    One row alone has nothing to be held against: {}.

    >>> check_falling([{"train_loss": loss} for loss in (8.0, 7.0, 6.0)])
    {'G3': {'first': 8.0, 'last': 6.0, 'passed': True}}
    """
    losses = [row["train_loss"] for row in rows if "train_loss" in row]
    if len(losses) < 2:
        return {}
    some = max(len(losses) // 10, 1)
    first, last = sum(losses[:some]) / some, sum(losses[-some:]) / some
    return {"G3": {"first": first, "last": last, "passed": last < first}}


def complaints(checks: Mapping[str, Check]) -> list[str]:
    """A line for each check that failed."""
    said = {
        "G1": "G1: the first forward pass is not finite",
        "G2": f"G2: the untrained model's output has less than {UNDECIDED:.0%} of the entropy of an even one",
        "G3": "G3: the training loss has not fallen",
    }
    return [f"warning: {said[name]}: {check}" for name, check in checks.items() if not check["passed"]]
