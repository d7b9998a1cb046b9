"""S4, D3, coupling, flow and gradient-ratio: the rows that compare components with each other.

A model with one component has nothing to compare: these rows are NOT_APPLICABLE.
"""

from __future__ import annotations

from statecheck.probes.contract import Evidence
from statecheck.verdict import Absence, Outcome, Status


def contributes(evidence: Evidence) -> Outcome:
    """S4: does the loss rise when a component is resample-ablated? NOT_APPLICABLE with one component."""
    return _compared(evidence, "S4")


def interaction(evidence: Evidence) -> Outcome:
    """D3: effect of ablating each component, largest over smallest. NOT_APPLICABLE with one component."""
    return _compared(evidence, "D3")


def coupling(evidence: Evidence) -> Outcome:
    """coupling: first-order effect of mean-ablating each component's state, largest over smallest.

    NOT_APPLICABLE with one component.
    """
    return _compared(evidence, "coupling")


def flow(evidence: Evidence) -> Outcome:
    """flow: each component's Shapley share of what the memory is worth. NOT_APPLICABLE with one component."""
    return _compared(evidence, "flow")


def gradient_ratio(evidence: Evidence) -> Outcome:
    """gradient-ratio: gradient norms of the components' parameters. NOT_APPLICABLE with one component."""
    return _compared(evidence, "gradient-ratio")


def _compared(evidence: Evidence, id: str) -> Outcome:
    names = list(evidence.facts.components)
    if len(names) < 2:
        reason = f"the model has one component ({names[0]}): there is nothing to compare it with"
        return Outcome(absences=(Absence(id, Status.NOT_APPLICABLE, reason),))
    reason = f"comparing components ({', '.join(names)}) is not in this version of statecheck"
    return Outcome(absences=(Absence(id, Status.SKIP, reason),))
