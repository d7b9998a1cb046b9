"""`check_model` and `@parametrize_with_checks`: the same checks as the command, in the caller's own process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statecheck.adapters import wrap
from statecheck.catalogue import items, model_entry_points
from statecheck.documents import load_documents
from statecheck.expected import expect, refuse_unknown
from statecheck.probes.contract import Effort, Evidence, gather
from statecheck.protocol import Capability, ModelFacts, StatefulModel, States
from statecheck.report.record import Report, make_report
from statecheck.report.violations import Replay, call, is_law, lines_of
from statecheck.runner import run_item
from statecheck.session import environment, inputs_digest
from statecheck.suite import Suite, SuiteItem, judge, load_suite, refuse_case
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
    examples: int = Effort.examples,
    seconds: float = Effort.seconds,
    case: str = "",
    expected_failures: Mapping[str, str] | None = None,
) -> Report:
    """Check a model in this process with the items of a suite; the report has verdict, path and exit code.

    `model` is a StatefulModel or whatever :func:`statecheck.wrap` takes. `inputs` are ids (batch, time), vectors
    (batch, time, features) or a sequence of documents; rows are documents, used at full length, the next element is
    the target. Without inputs a token model with a tokenizer is run on the bundled text, others on seeded tokens or
    vectors, and what needs text is SKIP. `only` names items; `probes` are functions labelled with `@probe` that the
    suite may name; `out` is a folder for the report's files, and for a script of each law that was broken.

    Each part of a law draws `examples` cases within `seconds`; a part whose time is up before that is SKIP, and never
    passed. `case` is a case as a report prints it, to be looked at alone; `only` then names one law.
    `expected_failures` maps laws, or parts of them ("PADR.native"), to reasons: their failure is XFAIL, and passing is
    STALE.

    The model's states, mode, parameters and the global random numbers are left as they were; an exception of the
    model is that item's FAIL, any other its ERROR.

    Raises :class:`statecheck.errors.StatecheckError` for a model, input or suite that is refused.

    >>> import torch
    >>> report = check_model(torch.nn.GRU(4, 4), suite="smoke")
    >>> report.verdict, report.exit_code, report["S3"].status
    ('PASS', 0, <Status.PASS: 'PASS'>)
    """
    table = items(probes)
    whole = load_suite(suite, items=table)
    chosen = whole.only(only)
    expected = dict(expected_failures or {})
    refuse_unknown(expected, whole)
    if case:
        refuse_case(case, [item.id for item in chosen.items])
    effort = Effort(examples, seconds, case)
    evidence = replace(_evidence(wrap(model), inputs, seed, training_log), effort=effort)
    before = evidence.model.get_states()
    outcomes, timings = {}, {}
    try:
        for item in chosen.items:
            start = time.perf_counter()
            outcomes[item.id] = run_item(table[item.id], item, evidence)
            timings[item.id] = round(time.perf_counter() - start, 3)
        if out is not None:
            _write_scripts(Path(out), evidence, outcomes.values())
    finally:
        _give_back(evidence.model, before)
    report = _report(evidence, chosen, expect(judge(chosen, outcomes, items=table), expected), timings)
    if out is not None:
        from statecheck.report.markdown import write_reports

        write_reports(report, Path(out))
    return report


def _write_scripts(folder: Path, evidence: Evidence, outcomes: Iterable[Outcome]) -> None:
    """A script for each law that a case broke, and the model beside them."""
    from statecheck.violations import clear, recipe_of_object, write_violations

    clear(folder)
    broken = [outcome for outcome in outcomes if any(number.broken for number in outcome.measurements)]
    if broken:
        recipe = cache(partial(recipe_of_object, folder, evidence))
        for outcome in broken:
            write_violations(folder, evidence, outcome, recipe)


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
    about = {"name": suite.name, "title": suite.title, "digest": suite.digest}
    effort = _said(evidence.effort)
    return make_report(
        verdicts,
        model={
            "title": facts.title,
            "origin": "an object of the caller's process",
            "digest": "",
            "facts": plain(facts),
        },
        suite={**about, "effort": effort} if effort else about,
        inputs=evidence.source,
        inputs_digest=inputs_digest(evidence),
        environment=environment(),
        timings=timings,
        seed=evidence.seed,
        notes=evidence.notes,
    )


def _said(effort: Effort) -> dict[str, int | float]:
    """The budget, where it is not the usual one."""
    usual, given = asdict(Effort()), asdict(effort)
    return {name: given[name] for name in ("examples", "seconds") if given[name] != usual[name]}


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
    only: Sequence[str] = (),
    examples: int = Effort.examples,
    seconds: float = Effort.seconds,
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A pytest decorator: the test function gets `model` and `check`, once for each model and item of the suite.

        @parametrize_with_checks([my_model], suite="smoke")
        def test_state(model, check):
            check(model)

    `check` raises AssertionError for FAIL, ERROR, STALE and INCONCLUSIVE, warns for WARN, and skips for SKIP and
    NOT_APPLICABLE, each with the verdict's reason; that of a broken law has the case, the first wrong element and the
    call that plays it again. `expected_failures` maps ids of items or parts to reasons: their failure is an xfail, and
    passing is STALE and fails. `only`, `examples` and `seconds` are those of :func:`check_model`.

    Raises :class:`statecheck.errors.UsageError` for a suite, item or expected failure that is not known.
    """
    import pytest

    whole = load_suite(suite)
    chosen = whole.only(only)
    expected = dict(expected_failures or {})
    refuse_unknown(expected, whole)
    effort = Effort(examples, seconds)
    shared: dict[int, Evidence] = {}

    def checker(item: SuiteItem) -> Callable[[object], None]:
        def check(model: object) -> None:
            __tracebackhide__ = True  # what pytest shows is the law, not this file
            if id(model) not in shared:
                shared[id(model)] = replace(_evidence(wrap(model), inputs, seed, None), effort=effort)
            outcome = run_item(items()[item.id], item, shared[id(model)])
            one = Suite(chosen.name, chosen.title, (item,), chosen.digest, chosen.text)
            verdict = expect(judge(one, {item.id: outcome}), expected)[0]
            _assert(verdict, call(seed, _said(effort)))

        return check

    rows = [
        pytest.param(model, checker(item), id=f"{_title(model)}-{item.id}") for model in models for item in chosen.items
    ]
    return pytest.mark.parametrize(("model", "check"), rows)


def _title(model: object) -> str:
    facts = getattr(model, "facts", None)
    return facts.title if isinstance(facts, ModelFacts) else type(model).__name__


def _assert(verdict: Verdict, replay: Replay) -> None:
    """What a verdict means to pytest."""
    import pytest

    __tracebackhide__ = True
    line = f"{verdict.id} {verdict.status}: {verdict.reason}"
    if verdict.status is Status.XFAIL:
        pytest.xfail(line)
    if verdict.status is Status.FAIL and is_law(verdict):
        raise AssertionError("\n".join(lines_of(verdict, replay)))
    if verdict.status in (Status.SKIP, Status.NOT_APPLICABLE):
        pytest.skip(line)
    if verdict.status is Status.WARN:
        warnings.warn(line, stacklevel=2)
    elif verdict.status is not Status.PASS:
        raise AssertionError(line)
