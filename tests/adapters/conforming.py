"""What the tests of the adapters share: the laws that a model breaks, and why a law was not judged."""

from __future__ import annotations

import statecheck as sc

CARRYING = ("STEP", "CHUNK", "PREFIX", "BATCH", "RESET", "FORK", "REORDER", "DETERM", "ALIAS", "HONEST")


def broken(model: object, *laws: str) -> list[str]:
    """The laws that fail, of those named, or of all of the suite; an error of statecheck's own counts as well."""
    report = sc.check_model(model, suite="conformance", only=laws)
    errors = [verdict.item for verdict in report.verdicts if verdict.status is sc.Status.ERROR]
    return [*report.failures, *errors]


def skipped(model: object, law: str) -> str:
    """Why a law was left out. Raises where it was not."""
    verdict = sc.check_model(model, suite="conformance", only=[law])[law]
    assert verdict.status is sc.Status.SKIP
    return verdict.reason
