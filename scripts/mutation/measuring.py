"""One mutant: whether it differs from the unchanged model, and what the laws say of it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import statecheck as sc
from mutation.elsewhere import differs_elsewhere
from mutation.plain import first_difference
from mutation.planting import planted, text_of
from mutation.rows import Mutant
from mutation.subjects import VOCABULARY, subject
from statecheck.catalogue import items
from statecheck.errors import StatecheckError
from statecheck.suite import load_suite

ELSEWHERE = 20  # histories
UNCHANGED = "unchanged"


REFUSED = "REFUSED"  # at the door: `wrap` itself raised


@dataclass(frozen=True)
class Task:
    """What to measure of a mutant, or of a subject as it is: whether it differs, and what these laws say."""

    mutant: Mutant | None
    subject: str
    histories: int
    seed: int
    differ: bool
    laws: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.subject}: {self.mutant.name if self.mutant else UNCHANGED}"


def missing(mutant: Mutant | None, subject: str, histories: int, seed: int, kept: Mapping[str, Any]) -> Task:
    """What is not measured yet, or was measured of other text."""
    differ = mutant is not None and kept.get("differ", {}).get("digest") != digest_of_differ(
        mutant, subject, histories, seed
    )
    digests = digests_of_laws(mutant, subject, seed)
    have = {law: found["digest"] for law, found in kept.get("laws", {}).items()}
    laws = tuple(law for law, digest in digests.items() if have.get(law) != digest)
    return Task(mutant, subject, histories, seed, differ, laws)


def measured(task: Task) -> dict[str, Any]:
    """What was asked for, as JSON can hold it."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    found: dict[str, Any] = {"laws": {}}
    if task.differ and task.mutant:
        digest = digest_of_differ(task.mutant, task.subject, task.histories, task.seed)
        found["differ"] = _difference(task, task.mutant) | {"digest": digest}
    if task.laws:
        digests = digests_of_laws(task.mutant, task.subject, task.seed)
        with planted(task.mutant) as load:
            verdicts = _verdicts(subject(task.subject, load, task.seed), task)
        found["laws"] = {law: verdict | {"digest": digests[law]} for law, verdict in verdicts.items()}
    return found


def _difference(task: Task, mutant: Mutant) -> dict[str, Any]:
    with planted(mutant) as load, planted(None) as load_original:
        model, original = subject(task.subject, load, task.seed), subject(task.subject, load_original, task.seed)
        found = first_difference(model, original, task.histories, vocabulary=VOCABULARY, seed=task.seed)
        told: dict[str, Any] = {"history": found.history, "error": found.error, "note": found.note}
        if found.history is None:
            told["elsewhere"] = differs_elsewhere(model, original, ELSEWHERE, vocabulary=VOCABULARY, seed=task.seed)
        return told


def _verdicts(model: nn.Module, task: Task) -> dict[str, dict[str, Any]]:
    try:
        report = sc.check_model(model, suite="conformance", only=task.laws, seed=task.seed)
    except StatecheckError as error:
        reason = f"{type(error).__name__}: {error}"
        return {law: {"status": REFUSED, "reason": reason, "seconds": 0.0} for law in task.laws}
    seconds = report.timings
    return {v.id: {"status": str(v.status), "reason": v.reason, "seconds": seconds[v.id]} for v in report.verdicts}


def digest_of_differ(mutant: Mutant, subject: str, histories: int, seed: int) -> str:
    """Of all that the histories depend on."""
    drawn = [text_of(f"mutation.{name}") for name in ("plain", "elsewhere")]
    return _digest(*_texts(mutant, subject, seed), *drawn, str(histories))


def digests_of_laws(mutant: Mutant | None, subject: str, seed: int) -> dict[str, str]:
    """By law of the suite, of the law's own file too; what laws share is left out (`--again`)."""
    table, ours = items(), _texts(mutant, subject, seed)
    return {
        item.id: _digest(*ours, text_of(table[item.id].load().__module__)) for item in load_suite("conformance").items
    }


def _texts(mutant: Mutant | None, subject: str, seed: int) -> list[str]:
    """The change, its module and the model, as text."""
    row = [mutant.old, mutant.new, text_of(mutant.module)] if mutant else [UNCHANGED]
    model = text_of(f"mutation.{'cached' if subject == 'cached' else 'subjects'}")
    return [*row, model, subject, str(seed)]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
