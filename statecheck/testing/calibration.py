"""The culprit matrix: every fault planted in healthy models of several architectures, and what each check said.

Faults of states are planted in models of one component, faults of branches in models of two. One of the latter is the
registered model `reference`, real and trained: of it only the items are run that a fault is about, on short windows,
and a part that fails of it as it was found, or can't be settled, is its own verdict, and proves nothing of a fault.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from statecheck.adapters import wrap
from statecheck.catalogue import items
from statecheck.documents import load_documents
from statecheck.errors import UsageError
from statecheck.faults import FAULTS, Fault, planted_in
from statecheck.probes.contract import gather
from statecheck.protocol import StatefulModel
from statecheck.report.record import Report
from statecheck.resolve import Request, resolve
from statecheck.runner import run_item
from statecheck.suite import judge, load_suite
from statecheck.testing.checking import check_model
from statecheck.testing.component_culprits import PlantedBranch
from statecheck.testing.culprits import Planted, plant
from statecheck.testing.oracles import GatedFilter, SelectiveCounter, drifting_vectors, topical_tokens
from statecheck.testing.training import train
from statecheck.testing.two_branch import TwoBranch, turning_levels
from statecheck.verdict import Status, Verdict

if TYPE_CHECKING:
    from statecheck.plan import Cell
    from statecheck.session import Session

Subject = tuple[StatefulModel, Sequence[Tensor] | Tensor]  # a model, and the documents that it is run on

TRAINING_LENGTH = 64
DOCUMENTS, LENGTH = 32, 4 * TRAINING_LENGTH + 3 * 32 + 1
REFERENCE_DOCUMENTS = 16  # the fewest that an interval can be had from
TRAINING_STEPS = 60  # of the faults that sit in a training log; the suite asks for 10,000


def selective_counter() -> Subject:
    """Tokens: a diagonal selective recurrence in two layers, and documents that it predicts well."""
    model = wrap(
        SelectiveCounter(),
        training_length=TRAINING_LENGTH,
        selective=True,
        title="selective counter (tokens, 2 layers)",
        states={"layers.*": {"recurrence": "diagonal"}},
    )
    return model, topical_tokens(DOCUMENTS, LENGTH)


def gated_filter() -> Subject:
    """Vectors: a torch.nn.GRU of two layers with a fitted readout, and sequences that it predicts well."""
    model = wrap(
        GatedFilter(),
        training_length=TRAINING_LENGTH,
        selective=True,
        title="GRU filter (vectors, 2 layers)",
        states={"layers.*": {"recurrence": "dense", "bounds": (-1.0, 1.0)}},
    )
    return model, drifting_vectors(DOCUMENTS, LENGTH)


def two_branch() -> Subject:
    """Vectors: a turning GRU beside a selective leaky average, and sequences that need both."""
    own = {"fast": "fast.*", "slow": "slow.*"}
    model = wrap(
        TwoBranch(),
        components=own,
        parameters=own,
        modules={"fast": "fast", "slow": "slow"},
        training_length=TRAINING_LENGTH,
        selective=True,
        title="two branches (vectors, GRU beside leaky average)",
        states={
            "fast.h": {"recurrence": "dense", "bounds": (-1.0, 1.0)},
            "slow.h": {"recurrence": "diagonal"},
        },
    )
    return model, turning_levels(DOCUMENTS, LENGTH)


@cache
def reference() -> Subject:
    """Tokens: the registered model `reference` on the text that it is registered with, in windows of 64 tokens.

    Raises :class:`UsageError` for one of a single component, which has no place for the faults of a branch.
    """
    subject = resolve(Request("reference"))
    facts = replace(subject.model.facts, training_length=TRAINING_LENGTH)
    if len(facts.components) < 2:
        raise UsageError(f"the registered model 'reference' has one component: {subject.title}")
    if subject.text is None:
        raise UsageError("the registered model 'reference' comes without a text to be run on")
    documents = load_documents(
        subject.text, tokenizer=subject.tokenizer, vocabulary=facts.vocabulary, width=facts.width
    )
    return subject.model.with_facts(facts), documents.rows[:REFERENCE_DOCUMENTS]  # type: ignore[attr-defined]


HEALTHY: Mapping[str, Callable[[], Subject]] = {
    "selective-counter": selective_counter,
    "gru-filter": gated_filter,
    "two-branch": two_branch,
    "reference": reference,
}


@dataclass(frozen=True)
class Row:
    """One planted fault: the parts that failed, and what follows from that.

    `missed` are parts that had to fail and did not, or failed without naming the layer or the component that the fault
    sits in; `wolves` failed without cause. `own` fail of the model as it was found and `unsettled` are INCONCLUSIVE
    of it: they are neither. Items that were not run are not in `statuses`.
    """

    architecture: str
    fault: str
    statuses: Mapping[str, str]  # item -> status
    failed: tuple[str, ...]
    missed: tuple[str, ...]
    wolves: tuple[str, ...]
    own: tuple[str, ...] = ()
    unsettled: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Caught, and nothing else cried wolf."""
        return not self.missed and not self.wolves


def examine(architecture: str, fault: str, *, severity: float | None = None, seed: int = 0) -> Row:
    """Plant one fault in one architecture and run phase39 on it: all of it, but for `reference` (see the module).

    Raises :class:`UsageError` for an unknown architecture or fault, and for a fault that the architecture can't have.
    """
    for name, known in ((architecture, HEALTHY), (fault, FAULTS)):
        if name not in known:
            raise UsageError(f"unknown {name!r}; known are {', '.join(known)}")
    model, inputs = HEALTHY[architecture]()
    chosen = FAULTS[fault]
    if chosen.items == ("extended",):
        verdicts = trained(chosen, model, inputs, severity=severity, seed=seed)
        return judged(architecture, chosen, model, verdicts)
    planted = plant(model, fault, severity=severity) if fault != "none" else control(model)
    if architecture != "reference":
        return judged(architecture, chosen, planted, check_model(planted, inputs=inputs, seed=seed))
    as_found = _as_found(seed)
    only = asked_of_reference(chosen)
    report = as_found if fault == "none" else check_model(planted, inputs=inputs, seed=seed, only=only)
    own, unsettled = (tuple(_parts(as_found, status)) for status in (Status.FAIL, Status.INCONCLUSIVE))
    return judged(architecture, chosen, planted, report, own=own, unsettled=unsettled)


def control(model: StatefulModel) -> StatefulModel:
    """The model planted with nothing: it goes the way of the faults that are planted in models of its kind."""
    branched = len(model.facts.components) > 1
    return plant(model, "branch-faint", severity=1.0) if branched else plant(model, "none")


@cache
def _as_found(seed: int) -> Report:
    """The registered model without any fault, by all items that some fault of a branch is about."""
    model, inputs = reference()
    return check_model(control(model), inputs=inputs, seed=seed, only=asked_of_reference(FAULTS["none"]))


def asked_of_reference(fault: Fault) -> tuple[str, ...]:
    """The items that a fault is about; for the control those of all faults of a branch."""
    others = [FAULTS[name].items for name in planted_in("reference")] if not fault.branch else [fault.items]
    wanted = {id for own in others for id in own} - {"extended"}
    return tuple(item.id for item in load_suite("phase39").items if item.id in wanted)


def trained(
    fault: Fault,
    model: StatefulModel,
    inputs: Sequence[Tensor] | Tensor,
    *,
    severity: float | None = None,
    seed: int = 0,
) -> list[Verdict]:
    """Train a copy with the fault in its first component, and judge the log by `extended`, which is asked for no more
    steps than there are.
    """
    multiplier = fault.severity if severity is None else severity
    suite = load_suite("phase39").only(("extended",))
    item = replace(suite.items[0], options={**suite.items[0].options, "steps": TRAINING_STEPS})
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "training_log.jsonl")
        train(model, inputs, log, component=_first(model), multiplier=multiplier, steps=TRAINING_STEPS, seed=seed)
        evidence = gather(model, inputs, seed=seed, training_log=log)
        outcome = run_item(items()["extended"], item, evidence)
    return judge(replace(suite, items=(item,)), {"extended": outcome})


def _first(model: StatefulModel) -> str:
    return next(iter(model.facts.components))


def judged(
    architecture: str,
    fault: Fault,
    planted: StatefulModel,
    report: Iterable[Verdict],
    *,
    own: Sequence[str] = (),
    unsettled: Sequence[str] = (),
) -> Row:
    """Hold a report against what the fault must bring about; `own` are parts that fail without it, and of those that
    are `unsettled` without it nothing is asked.
    """
    rows = list(report)
    failed = _parts(rows, Status.FAIL)
    place = _place(fault, planted)
    aside = {*own, *unsettled}

    def caught(part: str) -> bool:
        return part not in aside and any(all(word in reason for word in place) for reason in failed.get(part, ()))

    proving = [part for part in fault.caught_by if part not in aside] or fault.caught_by
    missed = tuple(part for part in proving if not caught(part))
    wolves = tuple(part for part in failed if part not in {*fault.caught_by, *fault.follows, *aside})
    statuses = {row.id: str(row.status) for row in rows}
    return Row(architecture, fault.name, statuses, tuple(failed), missed, wolves, tuple(own), tuple(unsettled))


def _place(fault: Fault, planted: StatefulModel) -> tuple[str, ...]:
    """What a failing part must name: the layer or the component that the fault sits in.

    S2 and S3 speak of whole components, and the rows that compare components name the two. A fault of training sits in
    the first component.
    """
    if isinstance(planted, PlantedBranch):
        return (planted.component, *([f"layer {planted.layer}"] if planted.layer is not None else []))
    if isinstance(planted, Planted):
        return (f"layer {planted.layer}",) if fault.layered else ()
    return (f"component {_first(planted)}",)


def _parts(report: Iterable[Verdict], status: Status) -> dict[str, list[str]]:
    """The parts of that status, and the reasons given."""
    found: dict[str, list[str]] = {}
    for part in (part for row in report for part in row.parts if part.status is status):
        found.setdefault(part.id, []).append(part.reason)
    return found


def calibrate_cell(session: Session, cell: Cell) -> dict[str, Any]:
    """A cell of kind "calibrate": its id is ARCHITECTURE/FAULT. One thread: the models are tiny."""
    torch.set_num_threads(1)
    architecture, _, fault = cell.id.partition("/")
    row = examine(architecture, fault, seed=session.plan.seed)
    lists = {key: list(getattr(row, key)) for key in ("failed", "missed", "wolves", "own", "unsettled")}
    return {"architecture": architecture, "fault": fault, "statuses": dict(row.statuses), "good": row.good, **lists}
