"""Probes: is the state healthy? And the tools among them that are used alone, each fetched when it is first named.

>>> from statecheck.probes import StateHealthMonitor
>>> StateHealthMonitor.__module__
'statecheck.probes.health'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statecheck.probes.coupling import GradientStateCouplingAnalyzer
    from statecheck.probes.flow import InformationFlowTracer
    from statecheck.probes.health import StateHealthMonitor

__all__ = ["GradientStateCouplingAnalyzer", "InformationFlowTracer", "StateHealthMonitor"]

#: Names, not imports: a suite that runs one probe loads no other, and no probe comes to depend on its siblings.
_HOME_OF = {
    "GradientStateCouplingAnalyzer": "statecheck.probes.coupling",
    "InformationFlowTracer": "statecheck.probes.flow",
    "StateHealthMonitor": "statecheck.probes.health",
}


def __getattr__(name: str) -> Any:
    """Fetch a tool from its home on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'statecheck.probes' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
