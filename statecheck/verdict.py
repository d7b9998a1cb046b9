"""The records that travel from a probe to the report: Measurement, Series, Absence, Outcome, Criterion, Verdict.

Probes make measurements; a suite's criteria judge them. All records are frozen values with plain JSON forms, and none
of them is true or false: a :class:`Status` refuses `bool`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn


class Status(Enum):
    """The state of a verdict. Compare it by name; it has no truth value.

    >>> bool(Status.PASS)
    Traceback (most recent call last):
    TypeError: a Status has no truth value: compare it, e.g. `status is Status.PASS`
    """

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    ERROR = "ERROR"
    NOT_APPLICABLE = "NOT_APPLICABLE"
    SKIP = "SKIP"
    XFAIL = "XFAIL"
    STALE = "STALE"

    def __bool__(self) -> NoReturn:
        raise TypeError("a Status has no truth value: compare it, e.g. `status is Status.PASS`")

    def __str__(self) -> str:
        return self.value


#: From worst to best: a row is as bad as the worst of its parts. NOT_APPLICABLE only if every part is.
SEVERITY = (
    Status.FAIL,
    Status.ERROR,
    Status.STALE,
    Status.SKIP,
    Status.INCONCLUSIVE,
    Status.WARN,
    Status.PASS,
    Status.XFAIL,
    Status.NOT_APPLICABLE,
)


def worst(statuses: Iterable[Status]) -> Status:
    """The status of a row whose parts have these statuses.

    >>> worst([Status.PASS, Status.NOT_APPLICABLE, Status.WARN])
    <Status.WARN: 'WARN'>
    """
    found = set(statuses)
    return next(status for status in SEVERITY if status in found)


@dataclass(frozen=True)
class Where:
    """The place in the model that a number speaks of. Empty: the whole model."""

    component: str | None = None
    layer: int | None = None
    head: int | None = None
    channel: int | None = None
    state: str | None = None
    position: int | None = None

    def __str__(self) -> str:
        named = [f"{key} {value}" for key, value in self.to_json().items()]
        return ", ".join(named) or "whole model"

    def to_json(self) -> dict[str, Any]:
        """The parts that are set."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Measurement:
    """One number with its place, its interval and what it rests on.

    `low` and `high` bound it at 95 %; `intervals` holds (confidence, low, high) at more levels, from which a
    correction for multiplicity is read. Exact quantities have low = high = value. `n` counts documents. `broken` is the
    simplest case that was found to break a law, as text that a command takes back.
    """

    name: str
    value: float
    unit: str = ""
    where: Where = Where()
    low: float = math.nan
    high: float = math.nan
    n: int = 1
    seed: int = 0
    intervals: tuple[tuple[float, float, float], ...] = ()
    note: str = ""
    broken: str = ""

    @staticmethod
    def exact(
        name: str, value: float, *, unit: str = "", where: Where | None = None, n: int = 1, note: str = ""
    ) -> Measurement:
        """A quantity that has no spread: a count, a shape, a relative difference of two runs."""
        return Measurement(name, float(value), unit, where or Where(), float(value), float(value), n, note=note)

    def p_beyond(self, threshold: float, *, above: bool) -> float:
        """Smallest alpha at which the interval lies wholly above (or below) `threshold`; 1.0 if none does.

        >>> m = Measurement("x", 12.0, low=10.5, high=14, intervals=((0.95, 10.5, 14), (0.99, 9.0, 15)))
        >>> round(m.p_beyond(10, above=True), 3), m.p_beyond(11, above=True)
        (0.05, 1.0)
        """
        if self.low == self.high:
            beyond = self.value > threshold if above else self.value < threshold
            return 0.0 if beyond else 1.0
        levels = self.intervals or ((0.95, self.low, self.high),)
        clear = [1 - level for level, low, high in levels if (low > threshold if above else high < threshold)]
        return min(clear, default=1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinities and NaN as strings, so that JSON stays strict."""
        return {
            "name": self.name,
            "value": number_to_json(self.value),
            "unit": self.unit,
            "where": self.where.to_json(),
            "low": number_to_json(self.low),
            "high": number_to_json(self.high),
            "n": self.n,
            "seed": self.seed,
            "intervals": [[number_to_json(x) for x in row] for row in self.intervals],
            "note": self.note,
            **({"broken": self.broken} if self.broken else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Measurement:
        """The inverse of :meth:`to_json`."""
        return Measurement(
            name=data["name"],
            value=float(data["value"]),
            unit=data["unit"],
            where=Where(**data["where"]),
            low=float(data["low"]),
            high=float(data["high"]),
            n=data["n"],
            seed=data["seed"],
            intervals=tuple((float(a), float(b), float(c)) for a, b, c in data["intervals"]),
            note=data["note"],
            broken=data.get("broken", ""),
        )


@dataclass(frozen=True)
class Series:
    """A curve for a picture: x against y with an optional band. `name` groups curves into one figure."""

    name: str
    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    x_unit: str = "tokens"
    y_unit: str = ""
    where: Where = Where()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        curves = {key: [number_to_json(v) for v in getattr(self, key)] for key in ("x", "y", "low", "high")}
        plain = {"name": self.name, "label": self.label, "x_unit": self.x_unit, "y_unit": self.y_unit}
        return {**plain, **curves, "where": self.where.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Series:
        """The inverse of :meth:`to_json`."""
        curves = {key: tuple(float(v) for v in data[key]) for key in ("x", "y", "low", "high")}
        where = Where(**data["where"])
        return Series(data["name"], data["label"], x_unit=data["x_unit"], y_unit=data["y_unit"], where=where, **curves)


@dataclass(frozen=True)
class Absence:
    """A part of an item that has no number, with the status that follows and the reason.

    NOT_APPLICABLE: the quantity can't exist for what the facts declare. SKIP: it exists and the evidence is missing.
    INCONCLUSIVE: the evidence is too thin. FAIL: the model did what makes the number impossible, by name.
    `unfinished`: it was begun, and a budget ended it: then it is asked for even of an item that is not required.
    """

    name: str
    status: Status
    reason: str
    where: Where = Where()
    unfinished: bool = False

    def __post_init__(self) -> None:
        if self.status in (Status.PASS, Status.WARN, Status.XFAIL, Status.STALE):
            raise ValueError(f"{self.name}: what has no number can't be {self.status}: give a Measurement")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain = {"name": self.name, "status": str(self.status), "reason": self.reason, "where": self.where.to_json()}
        return {**plain, "unfinished": True} if self.unfinished else plain

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Absence:
        """The inverse of :meth:`to_json`."""
        where = Where(**data["where"])
        return Absence(data["name"], Status(data["status"]), data["reason"], where, data.get("unfinished", False))


@dataclass(frozen=True)
class Outcome:
    """All that one item brought: what is judged, what is only shown, curves, and sentences for the reader."""

    measurements: tuple[Measurement, ...] = ()
    absences: tuple[Absence, ...] = ()
    shown: tuple[Measurement, ...] = ()
    series: tuple[Series, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        lists = {
            key: [record.to_json() for record in getattr(self, key)]
            for key in ("measurements", "absences", "shown", "series")
        }
        return {**lists, "notes": list(self.notes)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Outcome:
        """The inverse of :meth:`to_json`."""
        return Outcome(
            tuple(map(Measurement.from_json, data["measurements"])),
            tuple(map(Absence.from_json, data["absences"])),
            tuple(map(Measurement.from_json, data["shown"])),
            tuple(map(Series.from_json, data["series"])),
            tuple(data["notes"]),
        )


@dataclass(frozen=True)
class Bound:
    """One side of a criterion: '< 2' is Bound(above=False, threshold=2).

    >>> str(Bound.parse("> 10"))
    '> 10'
    """

    above: bool
    threshold: float

    @staticmethod
    def parse(text: str) -> Bound:
        """Read '< NUMBER' or '> NUMBER' with a finite number; ValueError otherwise."""
        sign, _, rest = text.strip().partition(" ") if isinstance(text, str) else ("", "", "")
        try:
            threshold = float(rest)
        except ValueError:
            threshold = math.nan
        if sign not in ("<", ">") or not math.isfinite(threshold):
            raise ValueError(f"expected '< NUMBER' or '> NUMBER', found {text!r}")
        return Bound(sign == ">", threshold)

    def __str__(self) -> str:
        short = f"{self.threshold:g}"
        exact = short if float(short) == self.threshold else repr(self.threshold)
        return f"{'>' if self.above else '<'} {exact}"

    def clear(self, low: float, high: float) -> bool:
        """True if the whole interval lies beyond the threshold."""
        return low > self.threshold if self.above else high < self.threshold


@dataclass(frozen=True)
class Criterion:
    """When a measurement passes and when it fails, where that comes from, and what to do about it.

    Several bounds in `passes` must all hold; any bound in `fails` fails. A value clear of both is WARN. A criterion
    without `fails` can't fail; with `otherwise` = WARN it warns when its upper bound is under `warns`.
    """

    measurement: str
    passes: tuple[Bound, ...]
    fails: tuple[Bound, ...]
    source: str
    advice: str = ""
    warns: tuple[Bound, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        sides = {key: [str(bound) for bound in getattr(self, key)] for key in ("passes", "warns", "fails")}
        return {"measurement": self.measurement, **sides, "source": self.source, "advice": self.advice}


@dataclass(frozen=True)
class Verdict:
    """The judgement on one item or one of its parts (`D1`, or `D1.growth` inside it)."""

    id: str
    status: Status
    reason: str
    title: str = ""
    measurements: tuple[Measurement, ...] = ()
    criteria: tuple[Criterion, ...] = ()
    parts: tuple[Verdict, ...] = ()
    shown: tuple[Measurement, ...] = ()
    series: tuple[Series, ...] = ()
    notes: tuple[str, ...] = ()
    required: bool = True
    unfinished: bool = False  # a budget ended it: it blocks, and is not nothing
    p_value: float = field(default=1.0, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `report.json` holds it."""
        return {
            "id": self.id,
            "title": self.title,
            "status": str(self.status),
            "required": self.required,
            **({"unfinished": True} if self.unfinished else {}),
            "reason": self.reason,
            "measurements": [m.to_json() for m in self.measurements],
            "criteria": [c.to_json() for c in self.criteria],
            "parts": [p.to_json() for p in self.parts],
            "shown": [m.to_json() for m in self.shown],
            "series": [s.to_json() for s in self.series],
            "notes": list(self.notes),
        }


def number_to_json(value: float) -> float | str:
    """A number that strict JSON can hold: NaN and infinities become strings that `float` reads back.

    >>> number_to_json(float("inf")), number_to_json(0.5)
    ('Infinity', 0.5)
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(value)
