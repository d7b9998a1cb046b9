"""Training steps, timed in a process of their own; :mod:`benchmarks.training` starts these and makes the rows.

    hybrid   hybrid-8m with the form that runs and with the chunked one, a plain GPT of its size, and a matrix product
             before and after each step of the first
    mamba    four blocks of Mamba-1: ours, mambapy's, and transformers' (one step, if it is asked for)

All models read the same batch, 8 rows of 256 tokens. Those that should say the same start from the same weights, and
their losses and clipped gradients of the first step are compared. The kernels' forms that ran are counted.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from statecheck_kernels import forms
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.presets import preset
from statecheck_reference.settings import TrainingSettings
from torch import Tensor

from benchmarks.clock import Call, Measured, interleaved, once
from benchmarks.forms_used import count_forms, used
from benchmarks.gpt import GPT as PlainGPT
from benchmarks.inputs import SEED
from benchmarks.learners import First, Learner, agree, forgetting
from benchmarks.mamba_models import MAMBA, PEERS, Peer
from benchmarks.settings import Settings
from benchmarks.speed import GEMM_SHAPE
from benchmarks.training import AFTER, BEFORE, CHUNKED, GPT, MINE, THEIRS

PRESET = "hybrid-8m"
GPT_SHAPE = {"layers": 9, "heads": 4}  # 2 % more parameters than hybrid-8m
ROWS, TIME = 8, 256
RATE = 1e-3
PATIENCE = 60.0  # seconds that one variant may take over all rounds
AROUND = 2  # rounds of ours before and after a step that is timed once
Told = Mapping[str, Any]


def main(told: Told) -> dict[str, Any]:
    """The figures that `told` asks for, as JSON can hold them."""
    torch.set_num_threads(told["threads"])
    torch.manual_seed(0)
    Settings(keep_memory=told["keep_memory"]).use_memory()
    count_forms()
    runs: dict[str, Callable[[Told], dict[str, Any]]] = {"hybrid": _hybrid, "mamba": _mamba}
    return runs[told["what"]](told)


def _batch(vocabulary: int, told: Told) -> Tensor:
    """Random tokens (B, T + 1)."""
    rows, time = (2, 16) if told["quick"] else (ROWS, TIME)
    return torch.randint(vocabulary, (rows, time + 1), generator=torch.Generator().manual_seed(SEED))


@contextmanager
def _form(name: str | None) -> Iterator[None]:
    """All calls inside get the form of that name; None: the one that they get anyway."""
    held = os.environ.get(forms.VARIABLE)
    if name is not None:
        os.environ[forms.VARIABLE] = name
    try:
        yield
    finally:
        if name is not None:
            os.environ.pop(forms.VARIABLE)
            os.environ.update({} if held is None else {forms.VARIABLE: held})


def _step(learner: Learner, form: str | None) -> float:
    with _form(form):
        return learner.step()


def _first(learner: Learner, form: str | None) -> tuple[First, list[str]]:
    """The first step, and the forms that it took."""
    used.clear()
    with _form(form):
        first = First.of(learner)
    return first, sorted(used)


def _hybrid(told: Told) -> dict[str, Any]:
    settings = TrainingSettings("hybrid", shape=preset(PRESET), peak_rate=RATE)
    vocabulary, width = int(settings.shape["vocabulary"]), int(settings.shape["width"])
    batch = _batch(vocabulary, told)
    model = settings.architecture.build(settings.shape)
    twin = deepcopy(model)
    gpt = PlainGPT(vocabulary, width, places=TIME, **GPT_SHAPE)
    mine, chunked = (Learner(one, forgetting(one), batch, settings) for one in (model, twin))
    plain = Learner(gpt, gpt, batch, settings)
    first, by_mine = _first(mine, told["form"])
    other, by_chunked = _first(chunked, CHUNKED)
    product = _product()
    calls: dict[str, Call] = {
        BEFORE: product,
        MINE: partial(_step, mine, told["form"]),
        AFTER: product,
        GPT: plain.step,
        CHUNKED: partial(_step, chunked, CHUNKED),
    }
    times = interleaved(calls, told["repeats"], PATIENCE)
    return {
        "times": _as_json(times),
        **_errors(first.errors(other)),
        "forms": {MINE: by_mine, CHUNKED: by_chunked},
        "parameters": {MINE: mine.parameters, GPT: plain.parameters},
        "falls": {MINE: mine.falls, CHUNKED: chunked.falls, GPT: plain.falls},
        "tokens": batch[:, 1:].numel(),
    }


def _product() -> Call:
    """The matrix product whose rate is the bound's, into memory that is there: nothing but the product is timed."""
    m, k, n = GEMM_SHAPE
    return partial(torch.mm, torch.randn(m, k), torch.randn(k, n), out=torch.empty(m, n))


def _mamba(told: Told) -> dict[str, Any]:
    """By peer: `missing` (why, or ""), and if it is there the errors of its first step and the times of both."""
    settings = TrainingSettings("hybrid", shape=MAMBA.to_dict(), peak_rate=RATE)
    batch = _batch(MAMBA.vocabulary, told)
    model = HybridLanguageModel(MAMBA)
    untrained = deepcopy(model)
    mine = Learner(model, forgetting(model), batch, settings)
    first, by_mine = _first(mine, told["form"])
    beside = _Beside(first, partial(_step, mine, told["form"]), told["repeats"])
    found: dict[str, Any] = {}
    for name in told["peers"]:
        try:
            peer = PEERS[name](MAMBA, untrained)
            found[name] = {"missing": peer} if isinstance(peer, str) else beside.measured(peer, batch, settings)
        except Exception as failure:  # whatever a peer raises, the others can still be measured
            found[name] = {"missing": f"fails: {type(failure).__name__}: {failure}"}
    return {"peers": found, "forms": by_mine, "parameters": mine.parameters}


@dataclass(frozen=True)
class _Beside:
    """What a peer is set beside: the first step of ours, from the weights that the peer has too, and the later ones."""

    first: First
    step: Call
    repeats: int

    def measured(self, peer: Peer, batch: Tensor, settings: TrainingSettings) -> dict[str, Any]:
        """Errors of the peer's first step, then times of both; none where they disagree."""
        learner = Learner(peer.model, peer.read, batch, settings)
        if peer.slow:
            return self._once(learner, peer)
        errors = self.first.errors(First.of(learner), peer.names)
        calls: dict[str, Call] = {MINE: self.step, THEIRS: learner.step}
        times = interleaved(calls, self.repeats, PATIENCE) if agree(*errors) else {}
        return {"missing": "", "once": False, **_errors(errors), "times": _as_json(times)}

    def _once(self, learner: Learner, peer: Peer) -> dict[str, Any]:
        """The first step is the one that is timed."""
        theirs, mine = once(learner.step, self.step, AROUND)
        errors = self.first.errors(First.taken(learner), peer.names)
        return {"missing": "", "once": True, **_errors(errors), "times": _as_json({MINE: mine, THEIRS: theirs})}


def _errors(errors: tuple[float, float]) -> dict[str, Any]:
    return {"errors": errors, "agrees": agree(*errors)}


def _as_json(times: Mapping[str, Measured]) -> dict[str, Any]:
    return {name: measured.to_json() for name, measured in times.items()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
