"""State norms against honest shares, on the bundled hybrid: the table of docs/findings/norms_are_not_shares.md.

    python scripts/founding_figures.py

Three models that share all weights but a few: the hybrid as it was trained; the same function written in other
coordinates of the WKV state (keys times c, receptances over c, c a power of two: not a bit of the output changes);
and one whose RWKV branch is a passenger (its output times 0.01), the positive control. For each: what norms and
variances of the states say, and what ablation, transplants and gradients say, with 95 % intervals over documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import statecheck as sc
from statecheck.documents import load_documents
from statecheck.probes.contract import gather
from statecheck.resolve import Request, resolve
from statecheck.statistics import mean_t
from statecheck.verdict import Measurement

MODEL = "reference-hybrid"
FIRST, SECOND = "rwkv", "mamba"
ROWS = ("D3", "flow", "coupling")

Interval = tuple[float, float, float]  # value, low, high


def main() -> None:
    """Print the table."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    exponent = -round(2 * math.log2(norms(load())["norm ratio"][0]))
    print(f"{MODEL}; 95 % intervals over documents")
    show("as it was trained", load())
    show(f"the same function, WKV in other coordinates: c = 2^{exponent}", edited(lambda block: scale(block, exponent)))
    show("positive control: the RWKV branch's output times 0.01", edited(silence))


def load() -> Any:
    """The bundled hybrid, wrapped, with weights of its own."""
    return resolve(Request(MODEL)).model


def edited(edit: Callable[[Any], None]) -> Any:
    """The hybrid after an edit of each block's weights."""
    model = load()
    with torch.no_grad():
        for block in model.module.blocks:
            edit(block)
    return model


def scale(block: Any, exponent: int) -> None:
    """Keys times c, receptances over c: S becomes c S, and r S stays what it is."""
    block.rwkv.key.weight.mul_(2.0**exponent)
    block.rwkv.receptance.weight.mul_(2.0**-exponent)


def silence(block: Any) -> None:
    """The branch's output times 0.01."""
    block.rwkv.output.weight.mul_(0.01)


def show(title: str, model: Any) -> None:
    """One part of the table."""
    documents = text(model)
    print(f"\n{title}\n")
    for name, (value, low, high) in {**norms(model), **honest(model, documents)}.items():
        print(f"  {name:52} {value:10.4g}  [{low:.4g}, {high:.4g}]")


def text(model: Any) -> tuple[Tensor, ...]:
    """The bundled documents as token ids."""
    folder = resolve(Request(MODEL)).text
    assert folder is not None
    facts = model.facts
    return load_documents(folder, tokenizer=facts.tokenizer, vocabulary=facts.vocabulary, width=None).rows


def honest(model: Any, documents: Sequence[Tensor]) -> dict[str, Interval]:
    """What ablation, transplants and gradients say of the two components."""
    report = sc.check_model(model, inputs=documents, only=ROWS)
    found: dict[str, Interval] = {}
    for id in ROWS:
        row = report[id]
        for m in (*row.measurements, *row.shown):
            if m.where.layer is None and m.name in WANTED:
                found[WANTED[m.name].format(m.where.component)] = _interval(m)
    return found


#: Measurement -> its line in the table.
WANTED = {
    "effect of ablation": "D3: rise of the loss without {}, nats",
    "D3.ratio": "D3: larger over smaller",
    "share of the memory": "flow: share of {}",
    "flow.memory": "flow: what all states are worth, nats",
    "kappa": "coupling: kappa of {}",
    "coupling.ratio": "coupling: larger over smaller",
}


def _interval(m: Measurement) -> Interval:
    return m.value, m.low, m.high


def norms(model: Any) -> dict[str, Interval]:
    """What is read off the states alone, after T_tr tokens of each document: value, low, high."""
    states = last_states(model)
    by = {c: [states[name].flatten(1).double() for name in model.facts.names(component=c)] for c in (FIRST, SECOND)}
    norm = {c: torch.cat(tensors, 1).norm(dim=1) for c, tensors in by.items()}  # (n,)
    variance = {c: torch.cat(tensors, 1).var(dim=1) for c, tensors in by.items()}  # (n,)
    share = norm[FIRST] / (norm[FIRST] + norm[SECOND])
    return {
        f"norm, {FIRST}": interval(norm[FIRST]),
        f"norm, {SECOND}": interval(norm[SECOND]),
        "norm ratio": interval(norm[FIRST] / norm[SECOND]),
        f"'contribution' of {FIRST} by norms": interval(share),
        "variance ratio": interval(variance[FIRST] / variance[SECOND]),
    }


@torch.no_grad()
def last_states(model: Any) -> dict[str, Tensor]:
    """States after the training length, one row a document."""
    inputs = gather(model, text(model)).streams(model.facts.training_length)
    model.set_states(None)
    model(inputs)
    return model.get_states()


def interval(values: Tensor) -> Interval:
    """Mean over documents with its interval."""
    estimate = mean_t(values.numpy(), np.random.default_rng(0))
    return estimate.value, estimate.low, estimate.high


if __name__ == "__main__":
    main()
