"""`statecheck conform`: the laws of a state on a model; `run` with a budget of searches and known failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from statecheck.catalogue import items
from statecheck.commands.asking import Asked, make_plan
from statecheck.commands.run import Told, check
from statecheck.engine import Limits
from statecheck.errors import UsageError
from statecheck.expected import refuse_unknown
from statecheck.plan import Cell
from statecheck.suite import load_suite, refuse_case

SUITE = "conformance"


@dataclass(frozen=True)
class Budget:
    """What was said of a search, as :class:`statecheck.probes.contract.Effort` has it; None: its own default."""

    examples: int | None = None
    seconds: float | None = None
    case: str = ""

    def options(self) -> dict[str, int | float | str]:
        """Of a cell: they belong to the plan, as they decide the numbers."""
        said = {"examples": self.examples, "seconds": self.seconds, "case": self.case or None}
        return {name: value for name, value in said.items() if value is not None}


@dataclass(frozen=True)
class Wanted:
    """Which laws, how hard they look, and which failures are known (by law or part, with the reason)."""

    laws: Sequence[str] = ()
    budget: Budget = field(default_factory=Budget)
    expected: Mapping[str, str] = field(default_factory=dict)


def conform(
    asked: Asked,
    wanted: Wanted,
    *,
    seed: int,
    out: Path | None,
    fresh: bool,
    limits: Limits,
    told: Told,
) -> int:
    """Hold a model to the laws; the exit code is the verdict's, or says why there is none."""
    suite = load_suite(SUITE, items=items())
    chosen = suite.only(wanted.laws, option="--law")
    refuse_unknown(wanted.expected, suite)
    if wanted.budget.case:
        refuse_case(wanted.budget.case, [item.id for item in chosen.items])
    cells = [Cell(item.id, options=wanted.budget.options()) for item in chosen.items]
    about = {"name": suite.name, "digest": suite.digest, "text": suite.text}
    plan = make_plan("conform", asked.request(), cells, seed=seed, suite=about)
    return check(asked.label, plan, out=out, fresh=fresh, limits=limits, told=told, expected=wanted.expected)


def parse_expected(texts: Sequence[str]) -> dict[str, str]:
    """LAW=REASON of each `--expect-failure`.

    >>> parse_expected(["PADR.native=issue 48256"])
    {'PADR.native': 'issue 48256'}
    """
    found = {}
    for text in texts:
        key, equal, why = text.partition("=")
        if not (key.strip() and equal and why.strip()):
            raise UsageError(f"--expect-failure {text}: expected LAW=REASON, PADR.native=issue 48256 say")
        found[key.strip()] = why.strip()
    return found
