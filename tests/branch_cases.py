"""Two-branch models for tests, and their numbers a second time: by expectation, and by direct sums in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import statecheck as sc
from statecheck.report.record import Report
from statecheck.testing.branches import AdditiveBranches

Array = NDArray[np.float64]

TRAINED = 64
SPEC = {"fast": [(0.85, 0.06)], "slow": [(0.95, 0.025)]}  # healthy: shares of memory .35 and .65, D3 1.36x
STATES = {"fast": "layers.*.fast.h", "slow": "layers.*.slow.h"}
MODULES = {"fast": "layers.*.fast", "slow": "layers.*.slow"}


def additive(spec: dict[str, list[tuple[float, float]]] | None = None) -> AdditiveBranches:
    """The healthy module, in float64."""
    return AdditiveBranches(spec or SPEC).double()


def wrapped(module: AdditiveBranches, *, modules: bool = True, **options: Any) -> sc.StatefulModel:
    if modules:
        options["modules"] = MODULES
    return sc.wrap(module, width=module.width, components=STATES, training_length=TRAINED, **options)


def constants(module: AdditiveBranches) -> tuple[Array, Array]:
    """Retentions and weights of all branches, in the order of the states."""
    branches = list(module._named().values())
    return tuple(np.array([getattr(b, name).item() for b in branches]) for name in ("retention", "weight"))  # type: ignore[return-value]


def covariances(module: AdditiveBranches, time: int) -> list[Array]:
    """Cov(h_a, h_b) over documents after 1 .. `time` elements of `sample`: h' = (diag(a) + 1 w^T) h + 1 noise."""
    a, w = constants(module)
    step, p, found = np.diag(a) + np.outer(np.ones(len(a)), w), np.zeros((len(a), len(a))), []
    for _ in range(time):
        p = step @ p @ step.T + 1
        found.append(p)
    return found


def states_over_time(module: AdditiveBranches, x: Array) -> Array:
    """h after each element of x (n, T, D): (branches, n, T, D)."""
    a, _ = constants(module)
    h, found = np.zeros((len(a), len(x), x.shape[2])), []
    for t in range(x.shape[1]):
        h = a[:, None, None] * h + x[:, t]
        found.append(h)
    return np.stack(found, axis=2)


def run(module: AdditiveBranches, *only: str, documents: int = 32, time: int = 353, **options: Any) -> Report:
    """A report on documents of the module as it was before its faults: `sample` ignores them."""
    return sc.check_model(wrapped(module, **options), inputs=module.sample(documents, time), only=only)


def part(report: Report, name: str, component: str | None = None) -> sc.Verdict:
    """The part of that name, of that component where one is said."""
    parts = [one for row in report for one in row.parts if one.id == name]
    return next(p for p in parts if component is None or p.measurements[0].where.component == component)


def shown(report: Report, id: str, name: str, component: str | None = None, layer: int | None = None) -> sc.Measurement:
    places = [m for m in report[id].shown if m.name == name]
    return next(m for m in places if m.where.component == component and m.where.layer == layer)


def as_numpy(x: Tensor) -> Array:
    return x.double().numpy(force=True)
