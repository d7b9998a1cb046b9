"""The report as a value: verdicts, the decision they fold to, and on what they rest. `report.json` is its plain form.

>>> from statecheck.verdict import Status, Verdict
>>> rows = [Verdict("S0", Status.PASS, "as declared"), Verdict("D1", Status.FAIL, "the state explodes")]
>>> report = make_report(rows, model={"title": "toy"}, suite={"name": "phase39"}, inputs="made-up tokens")
>>> report.verdict, report.path, report.exit_code, report.failures
('FAIL', 'C', 1, ['D1'])
>>> report["D1"].reason
'the state explodes'
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from statecheck.catalogue import suggest
from statecheck.errors import StatecheckError
from statecheck.gate import Decision, decide
from statecheck.verdict import (
    SEVERITY,
    Bound,
    Criterion,
    Measurement,
    Series,
    Status,
    Verdict,
    number_to_json,
)

#: The version of the layout of `report.json` and `baseline_metrics.json`.
SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """What one run found out about one model. Made by :func:`make_report`.

    `model` holds `title`, `origin`, `digest` (SHA-256 of the weights) and `facts` as plain data; `suite` holds `name`,
    `title` and `digest`; `inputs` is a sentence that says what the model was run on, `inputs_digest` its SHA-256.
    Clock times stand only in `environment` and `timings`: the rest is a pure function of model, inputs and seed.
    """

    verdicts: tuple[Verdict, ...]
    decision: Decision
    model: Mapping[str, Any]
    suite: Mapping[str, Any]
    inputs: str
    inputs_digest: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """ "PASS", "FAIL" or "INCONCLUSIVE"."""
        return self.decision.verdict

    @property
    def path(self) -> str | None:
        """ "A" (proceed), "B" (fix), "C" (back to architecture); None where the evidence does not suffice."""
        return self.decision.path

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive, 5 nothing was checked."""
        return self.decision.exit_code

    @property
    def failures(self) -> list[str]:
        """Ids of the items whose status is FAIL, in the order of the suite."""
        return [row.id for row in self.verdicts if row.status is Status.FAIL]

    def __iter__(self) -> Iterator[Verdict]:
        """The rows, one an item, in the order of the suite."""
        return iter(self.verdicts)

    def __getitem__(self, id: str) -> Verdict:
        """The verdict of an item ("D1") or of one of its parts ("D1.growth"; the worst, where several bear the name).

        Raises KeyError with the closest known id.
        """
        rows = [row for row in self.verdicts if row.id == id]
        found = rows or [part for row in self.verdicts for part in row.parts if part.id == id]
        if not found:
            known = {row.id for row in self.verdicts} | {part.id for row in self.verdicts for part in row.parts}
            raise KeyError(f"this report has no item {id!r}{suggest(str(id), known) if known else ''}")
        return min(found, key=lambda one: SEVERITY.index(one.status))

    def __str__(self) -> str:
        """A plain table: status, id, value and interval, what was asked, reason."""
        from statecheck.report.rows import plain_lines

        return "\n".join(plain_lines(self))

    def to_json(self) -> dict[str, Any]:
        """Plain data that strict JSON can hold: NaN and infinities are strings, paths and enumerations their text."""
        return to_plain(
            {
                "schema": SCHEMA,
                "verdict": self.verdict,
                "path": self.path,
                "exit_code": self.exit_code,
                "model": self.model,
                "suite": self.suite,
                "environment": self.environment,
                "timings": self.timings,
                "seed": self.seed,
                "inputs": self.inputs,
                "inputs_digest": self.inputs_digest,
                "notes": self.notes,
                "items": [row.to_json() for row in self.verdicts],
            }
        )

    def to_text(self) -> str:
        """The bytes of `report.json`: keys sorted, so that equal reports are equal files."""
        return json_text(self.to_json())

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Report:
        """The inverse of :meth:`to_json`.

        Raises :class:`StatecheckError` for another schema, for data that is not a report, and for a verdict that its
        own items do not fold to.
        """
        check_schema(data)
        try:
            rows = tuple(map(_verdict, data["items"]))
            report = Report(
                rows,
                decide(rows),
                model=dict(data["model"]),
                suite=dict(data["suite"]),
                inputs=str(data["inputs"]),
                inputs_digest=str(data["inputs_digest"]),
                environment=dict(data["environment"]),
                timings=dict(data["timings"]),
                seed=int(data["seed"]),
                notes=tuple(map(str, data["notes"])),
            )
            stored = (data["verdict"], data["path"], data["exit_code"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StatecheckError(
                f"expected a statecheck report, found {_told(error)}: make the report again"
            ) from None
        folded = (report.verdict, report.path, report.exit_code)
        if stored != folded:
            raise StatecheckError(
                f"the report says {stored[0]} (path {stored[1]}, exit {stored[2]}) but its items fold to {folded[0]} "
                f"(path {folded[1]}, exit {folded[2]}): it was edited, or made by another version; make it again"
            )
        return report


def make_report(
    verdicts: Iterable[Verdict],
    *,
    model: Mapping[str, Any],
    suite: Mapping[str, Any],
    inputs: str,
    inputs_digest: str = "",
    environment: Mapping[str, Any] | None = None,
    timings: Mapping[str, Any] | None = None,
    seed: int = 0,
    notes: Iterable[str] = (),
) -> Report:
    """A report of these verdicts; :func:`statecheck.gate.decide` folds them to its decision.

    The environment gains the version of statecheck, which :mod:`statecheck.compare` asks for.
    """
    rows = tuple(verdicts)
    return Report(
        rows,
        decide(rows),
        model,
        suite,
        inputs,
        inputs_digest,
        {"statecheck": installed_version(), **(environment or {})},
        timings or {},
        seed,
        tuple(notes),
    )


def installed_version() -> str:
    """The version of statecheck that runs; "unknown" from a source tree that was not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("statecheck")
    except PackageNotFoundError:
        return "unknown"


def check_schema(data: Any) -> None:
    """Raise :class:`StatecheckError` unless `data` is a mapping of this version's schema."""
    if not isinstance(data, Mapping):
        raise StatecheckError(f"expected a statecheck report (a JSON object), found {type(data).__name__}")
    if data.get("schema") != SCHEMA:
        raise StatecheckError(
            f"expected schema {SCHEMA}, found {data.get('schema', 'none')!r}: not a statecheck report, or made by "
            "another version; make it again with this one"
        )


def json_text(data: Any) -> str:
    """Strict JSON with sorted keys and a last newline; ValueError for NaN or an infinity left as a number."""
    return json.dumps(data, sort_keys=True, indent=1, allow_nan=False) + "\n"


def to_plain(data: Any) -> Any:
    """Plain JSON data from mappings, sequences, sets, paths, enumerations and numbers of any library.

    >>> to_plain({"low": float("-inf"), "kinds": {"b", "a"}})
    {'low': '-Infinity', 'kinds': ['a', 'b']}
    """
    if isinstance(data, Mapping):
        return {str(key): to_plain(value) for key, value in data.items()}
    if isinstance(data, (set, frozenset)):
        return sorted((to_plain(value) for value in data), key=str)
    if isinstance(data, (list, tuple)):
        return [to_plain(value) for value in data]
    if isinstance(data, Enum):
        return to_plain(data.value)
    if isinstance(data, float):
        return number_to_json(data)
    if data is None or isinstance(data, (bool, int, str)):
        return data
    return to_plain(data.item()) if hasattr(data, "item") else str(data)


def _verdict(data: Mapping[str, Any]) -> Verdict:
    return Verdict(
        id=data["id"],
        status=Status(data["status"]),
        reason=data["reason"],
        title=data["title"],
        measurements=tuple(map(Measurement.from_json, data["measurements"])),
        criteria=tuple(map(_criterion, data["criteria"])),
        parts=tuple(map(_verdict, data["parts"])),
        shown=tuple(map(Measurement.from_json, data["shown"])),
        series=tuple(map(Series.from_json, data["series"])),
        notes=tuple(data["notes"]),
        required=data["required"],
        unfinished=data.get("unfinished", False),
    )


def _criterion(data: Mapping[str, Any]) -> Criterion:
    passes, warns, fails = (tuple(map(Bound.parse, data[side])) for side in ("passes", "warns", "fails"))
    return Criterion(data["measurement"], passes, fails, data["source"], data["advice"], warns)


def _told(error: Exception) -> str:
    return f"none of {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
