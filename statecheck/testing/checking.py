"""`check_model` and `@parametrize_with_checks`: the same checks as the command, in the caller's own process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statecheck.adapters import wrap
from statecheck.catalogue import items, model_entry_points
from statecheck.documents import load_documents
from statecheck.probes.contract import Evidence, gather
from statecheck.protocol import Capability, ModelFacts, StatefulModel, States
from statecheck.report.record import Report, make_report
from statecheck.runner import run_item
from statecheck.session import environment, inputs_digest
from statecheck.suite import Suite, SuiteItem, judge, load_suite
from statecheck.verdict import Outcome, Status, Verdict

if TYPE_CHECKING:
    from torch import Tensor


def check_model(
    model: object,
    suite: str | Path = "phase39",
    inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    seed: int = 0,
    training_log: str | Path | None = None,
    only: Sequence[str] = (),
    probes: Iterable[Callable[..., Outcome]] = (),
    out: str | Path | None = None,
) -> Report:
    """Check a model in this process with the items of a suite; the report has verdict, path and exit code.

    `model` is a StatefulModel or whatever :func:`statecheck.wrap` takes. `inputs` are ids (batch, time), vectors
    (batch, time, features) or a sequence of documents; rows are documents, used at full length, the next element is
    the target. Without inputs a token model with a tokenizer is run on the bundled text, others on seeded tokens or
    vectors, and what needs text is SKIP. `only` names items; `probes` are functions labelled with `@probe` that the
    suite may name; `out` is a folder for the report's files.

    The model's states, mode, parameters and the global random numbers are left as they were; an exception of the
    model is that item's FAIL, any other its ERROR.

    Raises :class:`statecheck.errors.StatecheckError` for a model, input or suite that is refused.

    >>> import torch
    >>> report = check_model(torch.nn.GRU(4, 4), suite="smoke")
    >>> report.verdict, report.exit_code, report["S3"].status
    ('PASS', 0, <Status.PASS: 'PASS'>)
    """
    table = items(probes)
    chosen = load_suite(suite, items=table).only(only)
    evidence = _evidence(wrap(model), inputs, seed, training_log)
    before = evidence.model.get_states()
    outcomes, timings = {}, {}
    try:
        for item in chosen.items:
            start = time.perf_counter()
            outcomes[item.id] = run_item(table[item.id], item, evidence)
            timings[item.id] = round(time.perf_counter() - start, 3)
    finally:
        _give_back(evidence.model, before)
    report = _report(evidence, chosen, judge(chosen, outcomes, items=table), timings)
    if out is not None:
        from statecheck.report.markdown import write_reports

        write_reports(report, Path(out))
    return report


def _evidence(
    model: StatefulModel, inputs: Tensor | Sequence[Tensor] | None, seed: int, training_log: str | Path | None
) -> Evidence:
    log = Path(training_log) if training_log is not None else None
    facts = model.facts
    text = _bundled_text() if inputs is None and facts.inputs == "tokens" and facts.tokenizer else None
    if text is None:
        return gather(model, inputs, seed=seed, training_log=log)
    documents = load_documents(text, tokenizer=facts.tokenizer, vocabulary=facts.vocabulary, width=None)
    return gather(model, documents.rows, seed=seed, source=documents.source, training_log=log)


def _bundled_text() -> Path | None:
    """The text of the registered default model, if one is installed."""
    point = model_entry_points().get("reference")
    return getattr(point.load(), "text", None) if point else None


def _give_back(model: StatefulModel, before: States) -> None:
    """The states that the model held before it was checked."""
    if before and Capability.SET_STATES in model.facts.capabilities:
        model.set_states(before)
    elif Capability.RESET in model.facts.capabilities:
        model.set_states(None)


def _report(evidence: Evidence, suite: Suite, verdicts: list[Verdict], timings: Mapping[str, float]) -> Report:
    facts = evidence.facts
    return make_report(
        verdicts,
        model={
            "title": facts.title,
            "origin": "an object of the caller's process",
            "digest": "",
            "facts": plain(facts),
        },
        suite={"name": suite.name, "title": suite.title, "digest": suite.digest},
        inputs=evidence.source,
        inputs_digest=inputs_digest(evidence),
        environment=environment(),
        timings=timings,
        seed=evidence.seed,
        notes=evidence.notes,
    )


def plain(facts: ModelFacts) -> dict[str, Any]:
    """Facts as plain data for a report."""
    missing = {capability.value: reason for capability, reason in facts.missing.items()}
    return {**asdict(facts), "missing": missing}


def parametrize_with_checks(
    models: Sequence[object],
    *,
    suite: str | Path = "phase39",
    inputs: Tensor | Sequence[Tensor] | None = None,
    seed: int = 0,
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A pytest decorator: the test function gets `model` and `check`, once for each model and item of the suite.

        @parametrize_with_checks([my_model], suite="smoke")
        def test_state(model, check):
            check(model)

    `check` raises AssertionError for FAIL and ERROR and for INCONCLUSIVE of a required item, warns for WARN, and skips
    for SKIP and NOT_APPLICABLE, each with the verdict's reason. `expected_failures` maps item ids to reasons: their
    failure is an xfail, and passing is STALE and fails.
    """
    import pytest

    chosen = load_suite(suite)
    expected = dict(expected_failures or {})
    shared: dict[int, Evidence] = {}

    def checker(item: SuiteItem) -> Callable[[object], None]:
        def check(model: object) -> None:
            if id(model) not in shared:
                shared[id(model)] = _evidence(wrap(model), inputs, seed, None)
            outcome = run_item(items()[item.id], item, shared[id(model)])
            one = Suite(chosen.name, chosen.title, (item,), chosen.digest, chosen.text)
            _assert(judge(one, {item.id: outcome})[0], expected.get(item.id))

        return check

    rows = [
        pytest.param(model, checker(item), id=f"{_title(model)}-{item.id}") for model in models for item in chosen.items
    ]
    return pytest.mark.parametrize(("model", "check"), rows)


def _title(model: object) -> str:
    facts = getattr(model, "facts", None)
    return facts.title if isinstance(facts, ModelFacts) else type(model).__name__


def _assert(verdict: Verdict, excuse: str | None) -> None:
    """What a verdict means to pytest."""
    import pytest

    line = f"{verdict.id} {verdict.status}: {verdict.reason}"
    if excuse is not None:
        if verdict.status is Status.FAIL:
            pytest.xfail(f"{excuse} ({line})")
        raise AssertionError(f"STALE: {verdict.id} was expected to fail ({excuse}), and did not; remove it. {line}")
    if verdict.status in (Status.SKIP, Status.NOT_APPLICABLE):
        pytest.skip(line)
    if verdict.status is Status.WARN:
        warnings.warn(line, stacklevel=2)
    elif verdict.status is not Status.PASS:
        raise AssertionError(line)
