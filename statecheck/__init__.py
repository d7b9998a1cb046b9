"""statecheck: the test bench for models that remember.

Is the state right, is it healthy, is it any use? This module is the public face; importing it loads nothing else, and
each name is fetched from its home when it is first used.

>>> import statecheck as sc
>>> sc.Status.PASS
<Status.PASS: 'PASS'>
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statecheck.adapters import wrap, wrap_op
    from statecheck.probes.contract import probe
    from statecheck.protocol import (
        Capability,
        ComponentFacts,
        ModelFacts,
        RegisteredModel,
        StateFacts,
        StatefulModel,
        StateKind,
        States,
        advance,
        fresh,
    )
    from statecheck.report.record import Report
    from statecheck.testing import check_model, parametrize_with_checks
    from statecheck.tracing import trace
    from statecheck.verdict import Absence, Criterion, Measurement, Outcome, Series, Status, Verdict, Where

    __version__: str

__all__ = [
    "Absence",
    "Capability",
    "ComponentFacts",
    "Criterion",
    "Measurement",
    "ModelFacts",
    "Outcome",
    "RegisteredModel",
    "Report",
    "Series",
    "StateFacts",
    "StateKind",
    "StatefulModel",
    "States",
    "Status",
    "Verdict",
    "Where",
    "__version__",
    "advance",
    "check_model",
    "fresh",
    "parametrize_with_checks",
    "probe",
    "trace",
    "wrap",
    "wrap_op",
]

_HOMES = {
    "statecheck.adapters": ("wrap", "wrap_op"),
    "statecheck.probes.contract": ("probe",),
    "statecheck.protocol": (
        "Capability",
        "ComponentFacts",
        "ModelFacts",
        "RegisteredModel",
        "StateFacts",
        "StateKind",
        "StatefulModel",
        "States",
        "advance",
        "fresh",
    ),
    "statecheck.report.record": ("Report",),
    "statecheck.testing": ("check_model", "parametrize_with_checks"),
    "statecheck.tracing": ("trace",),
    "statecheck.verdict": (
        "Absence",
        "Criterion",
        "Measurement",
        "Outcome",
        "Series",
        "Status",
        "Verdict",
        "Where",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Fetch a public name from its home on first use, so that `import statecheck` loads no torch."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("statecheck")
    elif name in _HOME_OF:
        from importlib import import_module

        value = getattr(import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'statecheck' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
