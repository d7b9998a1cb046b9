"""Pre-flight: is all there that a run will need? Rows of (what, "ok" | "no" | "note", in words)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from statecheck.catalogue import backend_entry_points
from statecheck.errors import StatecheckError
from statecheck.probes.contract import ASSUMED_TRAINING_LENGTH, ENOUGH_DOCUMENTS, Evidence
from statecheck.protocol import Capability, ModelFacts, fresh
from statecheck.wording import listed, one_line, raised

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint

    from statecheck.plan import Cell
    from statecheck.resolve import Subject
    from statecheck.session import Session

Row = tuple[str, str, str]
TOKENS = 64


def examine(session: Session, cell: Cell) -> dict[str, Any]:
    """A cell of kind "doctor": the rows for the machine, and for the model where there is one."""
    rows = [*machine(), *backends(backend_entry_points())]
    if session.model is not None and session.evidence is not None:
        rows += of_model(session.model, session.evidence)
    return {"rows": [list(row) for row in rows]}


def machine() -> list[Row]:
    """Versions and what torch can use here."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return [
        ("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("vector units", "ok", torch.backends.cpu.get_cpu_capability()),
        ("GPU", "note" if gpu == "none" else "ok", gpu),
    ]


def backends(points: Iterable[EntryPoint]) -> list[Row]:
    """What the plug-ins of the group `statecheck.backends` tell of themselves; one that fails gives a "no" row.

    Each is a function without arguments that returns rows (what, is it usable here?, in words).
    """
    return [row for point in points for row in _told_by(point)]


def _told_by(point: EntryPoint) -> list[Row]:
    what = one_line(point.name, 40)
    try:
        found = list(point.load()())
    except (Exception, SystemExit) as error:
        return [(what, "no", f"{one_line(point.value, 80)} raised {raised(error)}")]
    return [_backend(what, point, row) for row in found] or [(what, "no", "tells of no backend")]


def _backend(what: str, point: EntryPoint, row: object) -> Row:
    match row:
        case (str(name), bool(usable), str(text)):
            return (one_line(f"{what}: {name}", 60), "ok" if usable else "no", one_line(text))
        case _:
            expected = "expected rows (what: str, usable: bool, text: str)"
            return (what, "no", f"{one_line(point.value, 80)}: {expected}, found {one_line(repr(row), 80)}")


def of_model(subject: Subject, evidence: Evidence) -> list[Row]:
    """What was found of the model: weights, states, capabilities, text, training log."""
    facts = evidence.facts
    return [
        ("model", "ok", f"{one_line(subject.title)}, {_parameters(evidence)}; {one_line(subject.origin)}"),
        ("backend", "ok", f"{facts.backend}, {facts.dtype} on {facts.device}"),
        _states(facts),
        _forward(evidence),
        *(_capability(facts, capability) for capability in Capability),
        _length(facts),
        _tokenizer(subject, facts),
        _documents(evidence),
        ("training log", "ok", str(evidence.training_log))
        if evidence.training_log
        else ("training log", "no", "none: `extended` will be SKIP; say --training-log FILE"),
        *(("note", "note", one_line(text)) for text in (*subject.notes, *evidence.notes)),
    ]


def _parameters(evidence: Evidence) -> str:
    module = getattr(evidence.model, "module", None)
    if not isinstance(module, torch.nn.Module):
        return "parameters unknown"
    return f"{sum(parameter.numel() for parameter in module.parameters()):,} parameters"


def _states(facts: ModelFacts) -> Row:
    layers = len({(state.component, state.layer) for state in facts.states.values()})
    names = listed(list(facts.states))
    return ("states", "ok", f"{len(facts.states)} in {layers} layers of {listed(list(facts.components))}: {names}")


def _forward(evidence: Evidence) -> Row:
    """One call on a few tokens, timed."""
    inputs = evidence.streams(TOKENS, most=4, name="doctor")
    try:
        with torch.no_grad():
            model = fresh(evidence.model)
            started = time.perf_counter()
            model(inputs)
    except StatecheckError as error:
        return ("forward", "no", one_line(error))
    rate = inputs.shape[0] * TOKENS / (time.perf_counter() - started)
    return ("forward", "ok", f"reads about {rate:,.0f} elements a second in {inputs.shape[0]} rows")


def _capability(facts: ModelFacts, capability: Capability) -> Row:
    name = capability.value.replace("_", " ")
    if capability in facts.capabilities:
        return (name, "ok", "yes")
    return (name, "no", one_line(facts.missing.get(capability, "not declared")))


def _length(facts: ModelFacts) -> Row:
    if facts.training_length:
        return ("training length", "ok", f"{facts.training_length} tokens")
    return ("training length", "note", f"not declared; {ASSUMED_TRAINING_LENGTH} tokens will be assumed")


def _tokenizer(subject: Subject, facts: ModelFacts) -> Row:
    if facts.inputs != "tokens":
        return ("tokenizer", "ok", "not needed: the model reads vectors")
    if subject.tokenizer is not None:
        return ("tokenizer", "ok", "found")
    return ("tokenizer", "no", "none: text can't be read; say --tokenizer FILE")


def _documents(evidence: Evidence) -> Row:
    lengths = sorted(len(row) for row in evidence.rows)
    said = f"{one_line(evidence.source)}; {len(lengths)} documents of {lengths[0]:,} to {lengths[-1]:,} elements"
    if not evidence.natural:
        return ("text", "no", f"{said}; what needs text will be SKIP; say --data FILE or FOLDER")
    enough = len(lengths) >= ENOUGH_DOCUMENTS
    return ("text", "ok" if enough else "no", said if enough else f"{said}; intervals need {ENOUGH_DOCUMENTS}")
