"""The culprit matrix: every fault planted in healthy models of several architectures, and what each check said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from statecheck.adapters import wrap
from statecheck.errors import UsageError
from statecheck.faults import FAULTS, Fault
from statecheck.protocol import StatefulModel
from statecheck.report.record import Report
from statecheck.testing.checking import check_model
from statecheck.testing.culprits import Planted, plant
from statecheck.testing.oracles import GatedFilter, SelectiveCounter, drifting_vectors, topical_tokens
from statecheck.verdict import Status

if TYPE_CHECKING:
    from statecheck.plan import Cell
    from statecheck.session import Session

TRAINING_LENGTH = 64
DOCUMENTS, LENGTH = 32, 4 * TRAINING_LENGTH + 3 * 32 + 1


def selective_counter() -> tuple[StatefulModel, Tensor]:
    """Tokens: a diagonal selective recurrence in two layers, and documents that it predicts well."""
    model = wrap(
        SelectiveCounter(),
        training_length=TRAINING_LENGTH,
        selective=True,
        title="selective counter (tokens, 2 layers)",
        states={"layers.*": {"recurrence": "diagonal"}},
    )
    return model, topical_tokens(DOCUMENTS, LENGTH)


def gated_filter() -> tuple[StatefulModel, Tensor]:
    """Vectors: a torch.nn.GRU of two layers with a fitted readout, and sequences that it predicts well."""
    model = wrap(
        GatedFilter(),
        training_length=TRAINING_LENGTH,
        selective=True,
        title="GRU filter (vectors, 2 layers)",
        states={"layers.*": {"recurrence": "dense", "bounds": (-1.0, 1.0)}},
    )
    return model, drifting_vectors(DOCUMENTS, LENGTH)


HEALTHY: Mapping[str, Callable[[], tuple[StatefulModel, Tensor]]] = {
    "selective-counter": selective_counter,
    "gru-filter": gated_filter,
}


@dataclass(frozen=True)
class Row:
    """One planted fault: the parts that failed, and what follows from that.

    `missed` are parts that had to fail and did not, or failed without naming the layer; `wolves` failed without cause.
    """

    architecture: str
    fault: str
    statuses: Mapping[str, str]  # item -> status
    failed: tuple[str, ...]
    missed: tuple[str, ...]
    wolves: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Caught, and nothing else cried wolf."""
        return not self.missed and not self.wolves


def examine(architecture: str, fault: str, *, severity: float | None = None, seed: int = 0) -> Row:
    """Plant one fault in one architecture and run phase39 on it.

    Raises :class:`UsageError` for an unknown architecture or fault.
    """
    if architecture not in HEALTHY:
        raise UsageError(f"unknown architecture {architecture!r}; known are {', '.join(HEALTHY)}")
    model, inputs = HEALTHY[architecture]()
    planted = plant(model, fault, severity=severity)
    return judged(architecture, FAULTS[fault], planted, check_model(planted, inputs=inputs, seed=seed))


def judged(architecture: str, fault: Fault, planted: StatefulModel, report: Report) -> Row:
    """Hold a report against what the fault must bring about."""
    failed = {part.id: part for row in report for part in row.parts if part.status is Status.FAIL}
    missed = [name for name in fault.caught_by if name not in failed or not _names_layer(fault, planted, report, name)]
    allowed = {*fault.caught_by, *fault.follows}
    wolves = [name for name in failed if name not in allowed]
    statuses = {row.id: str(row.status) for row in report}
    return Row(architecture, fault.name, statuses, tuple(failed), tuple(missed), tuple(wolves))


def _names_layer(fault: Fault, planted: StatefulModel, report: Report, part: str) -> bool:
    """True if the failing part names the layer that the fault sits in (S2 and S3 speak of whole components)."""
    if not fault.layered or not isinstance(planted, Planted):
        return True
    parts = [one for row in report for one in row.parts if one.id == part and one.status is Status.FAIL]
    return any(f"layer {planted.layer}" in one.reason for one in parts)


def calibrate_cell(session: Session, cell: Cell) -> dict[str, Any]:
    """A cell of kind "calibrate": its id is ARCHITECTURE/FAULT. One thread: the models are tiny."""
    torch.set_num_threads(1)
    architecture, _, fault = cell.id.partition("/")
    row = examine(architecture, fault, seed=session.plan.seed)
    lists = {"failed": list(row.failed), "missed": list(row.missed), "wolves": list(row.wolves)}
    return {"architecture": architecture, "fault": fault, "statuses": dict(row.statuses), "good": row.good, **lists}
