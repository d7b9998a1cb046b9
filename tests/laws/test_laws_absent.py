"""A model that lacks what a law needs is SKIP or NOT_APPLICABLE with the reason, never PASS and never FAIL."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from law_models import Counting, Memory, Packed, Remembering
from path_culprits import DropoutInEvaluation
from torch import Tensor, nn

import statecheck as sc
from statecheck.protocol import Capability, Native
from statecheck.verdict import Status, Verdict


class Watched(nn.Module):
    """A counter that can be observed and reset; its states can't be put back."""

    width = 1

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.n: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        before = torch.zeros_like(x[:, 0]) if self.n is None else self.n
        counts = before[:, None] + torch.ones_like(x).cumsum(1)
        self.n = counts[:, -1]
        return self.scale * counts

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.n is None else {"n": self.n}

    def reset(self) -> None:
        self.n = None


class CantBeCopied(Remembering):
    """It holds a lock: no copy of it can be made."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class StepsAlone(Remembering):
    """On a warm state it reads single elements."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.memory is not None and x.shape[1] > 1:
            raise ValueError("one element at a time")
        return super().forward(x, mask)


class RefusesToCrop(Counting):
    """A recurrent state that says that it can't be rolled back."""

    @property
    def native(self) -> Native:
        return Native(crop=self.crop)

    def crop(self, length: int) -> None:
        from statecheck.errors import NotOffered

        raise NotOffered("the library refuses: a recurrent state can't be rolled back")


class DetachesItsStates(Remembering):
    """States go in and out without their graph."""

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        super().set_states(states and {name: value.detach() for name, value in states.items()})


class DropsOut(Remembering):
    """Dropout, in training mode alone."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        return nn.functional.dropout(y, 0.5, self.training), after

    def uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.read(x, mask, self.begin(x))[0]


def parts(module: nn.Module, law: str) -> dict[str, Verdict]:
    """The parts of a law by name; the law itself among them where it was not held at all."""
    model = sc.wrap(module, width=module.width)
    return {part.id: part for part in sc.check_model(model, suite="conformance", only=[law])[law].parts}


NOT_THERE = Status.NOT_APPLICABLE
ABSENT = [
    (Watched, "STEP.functional", Status.SKIP, "no capability 'set_states'"),
    (Watched, "CHUNK.functional", Status.SKIP, "no capability 'set_states'"),
    (Watched, "BATCH.functional", Status.SKIP, "no capability 'set_states'"),
    (Watched, "RESET.functional", Status.SKIP, "no capability 'set_states'"),
    (Watched, "FORK.functional", Status.SKIP, "no capability 'set_states'"),
    (Watched, "ALIAS.functional", Status.SKIP, "no set_states"),
    (Watched, "REORDER.functional", Status.SKIP, "no capability 'set_states'"),
    (Watched, "DETERM.functional", Status.SKIP, "no capability 'set_states'"),
    (Watched, "HONEST", Status.SKIP, "no capability 'set_states'"),
    (Watched, "GRAD.functional", Status.SKIP, "no set_states"),
    (
        StepsAlone,
        "CHUNK",
        Status.SKIP,
        "no capability 'chunks': the model raised ValueError in StepsAlone: one element",
    ),
    (Packed, "PADL", Status.SKIP, "no capability 'mask': its calls take no mask"),
    (Packed, "PADR", Status.SKIP, "no capability 'mask': its calls take no mask"),
    (Remembering, "PACK", Status.SKIP, "no capability 'segments': its calls take no segments"),
    (Packed, "RESET.native", NOT_THERE, "the library offers no reset of its own"),
    (Packed, "FORK.native", NOT_THERE, "the library offers no held of its own"),
    (Packed, "REORDER.native", NOT_THERE, "the library offers no reorder of its own"),
    (Packed, "REORDER.beams", NOT_THERE, "the library offers no beam search of its own"),
    (Packed, "CROP.native", NOT_THERE, "the library offers no crop of its own"),
    (RefusesToCrop, "CROP.native", NOT_THERE, "a recurrent state can't be rolled back"),
    (CantBeCopied, "RESET.native", Status.SKIP, "no capability 'rebuild'"),
    (CantBeCopied, "HONEST.sufficient", Status.SKIP, "no capability 'rebuild'"),
    (CantBeCopied, "GRAD", Status.SKIP, "can't be copied"),
    (CantBeCopied, "NUM.extreme", Status.SKIP, "can't be copied"),
    (CantBeCopied, "NUM.low", Status.SKIP, "can't be copied"),
    (CantBeCopied, "LOAD.functional", NOT_THERE, "no copy of the module can be made"),
    (Packed, "LOAD.native", NOT_THERE, "the library offers no saving and loading of its own"),
    (DetachesItsStates, "GRAD.functional", Status.SKIP, "detached"),
    (Counting, "GRAD.native", NOT_THERE, "the model has no parameters that take gradients"),
    (DropsOut, "PARITY.training", NOT_THERE, "training mode draws random numbers"),
]


@pytest.mark.parametrize(("kind", "name", "status", "reason"), ABSENT, ids=lambda v: getattr(v, "__name__", None))
def test_a_law_is_not_held_on_what_is_not_there(kind: type[nn.Module], name: str, status: Status, reason: str) -> None:
    part = parts(kind(), name.partition(".")[0])[name]
    assert part.status is status
    assert reason in part.reason


@pytest.mark.parametrize("law", ["STEP", "PREFIX", "PARITY", "DETERM", "SIZE", "ALIAS"])
def test_a_model_that_can_neither_forget_nor_be_copied_is_skipped(law: str) -> None:
    model = sc.wrap(Watched(), width=1)
    less = model.facts.capabilities - {Capability.RESET, Capability.REBUILD, Capability.SET_STATES}
    model = model.with_facts(replace(model.facts, capabilities=less))
    verdict = sc.check_model(model, suite="conformance", only=[law])[law]
    assert verdict.status is Status.SKIP
    assert "no capability 'reset'" in verdict.reason


def test_a_required_law_that_could_not_be_held_keeps_a_model_from_passing() -> None:
    report = sc.check_model(sc.wrap(Watched(), width=1), suite="conformance", only=["STEP", "PREFIX"])
    assert (report["STEP"].status, report["PREFIX"].status) == (Status.SKIP, Status.PASS)
    assert (report.verdict, report.exit_code) == ("INCONCLUSIVE", 3)


def test_what_a_model_may_lack_does_not_keep_it_from_passing() -> None:
    report = sc.check_model(sc.wrap(Packed(), width=3), suite="conformance", only=["STEP", "PADL", "PADR", "CROP"])
    assert (report["PADL"].status, report["CROP"].status) == (Status.SKIP, Status.NOT_APPLICABLE)
    assert report.verdict == "PASS"


def test_a_random_model_still_says_what_it_lacks() -> None:
    assert parts(DropoutInEvaluation(), "CROP")["CROP.native"].status is Status.NOT_APPLICABLE
