"""The table of culprits: faults that `statecheck.testing.plant` puts into a healthy model, and who must catch them.

`statecheck calibrate` plants them and prints which checks failed: those of states in models of one component, those of
branches in models of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: The healthy models of the matrix; `statecheck.testing.calibration` makes them. `reference` is the registered model.
SINGLE, BRANCHED = ("selective-counter", "gru-filter"), ("two-branch", "reference")
ARCHITECTURES = (*SINGLE, *BRANCHED)


@dataclass(frozen=True)
class Fault:
    """A fault: its sin, the part that must fail, the parts that it really breaks as well, a default severity.

    `layered` faults sit in one layer, which the failing part must name; faults of a `branch` sit in one component,
    which it must name, and are about the `items` named (others: about all).
    """

    name: str
    sin: str
    caught_by: tuple[str, ...]
    follows: tuple[str, ...]
    severity: float
    meaning: str
    layered: bool = True
    branch: bool = False
    items: tuple[str, ...] = ()


#: The rows that compare components, and those that must say of one that it adds nothing. What memory is left may be
#: worth nothing, so that there is nothing to share: `flow` may fail then, and need not.
COMPARISONS = ("S4", "D3", "flow", "coupling", "gradient-ratio")
_SILENT = ("S4.contribution", "D3.ratio", "coupling.ratio", "gradient-ratio.first_to_second")
_SHARES = ("flow.share", "flow.memory")
_ALL_MEMORY = ("D4.reach", "D4.readout")

FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("none", "nothing: the control", (), (), 0.0, "nothing", layered=False),
        Fault(
            "retention-above-1",
            "every unit of a layer keeps more than all of its state",
            ("D1.growth",),
            (
                "D1.channel",
                "D1.nonfinite",
                "S1.nonfinite",
                "S1.magnitude",
                "G3.5.cosine",
                "health.score",
                "D4.perplexity",
                "D2.decay",
            ),
            0.04,
            "added to the retention of every unit",
        ),
        Fault(
            "channel-explodes",
            "one channel of a layer grows without bound among healthy ones",
            ("D1.channel",),
            (
                "D1.growth",
                "D1.nonfinite",
                "S1.nonfinite",
                "S1.magnitude",
                "G3.5.cosine",
                "health.score",
                "D4.perplexity",
            ),
            1.02,
            "retention of the channel",
        ),
        Fault(
            "frozen",
            "the state of a layer is the same whatever is read",
            ("D2.frozen",),
            ("G3.5.cosine", "G3.5.pinned", "D2.saturated", "D2.decay", "health.score", "S2.dependence"),
            1.0,
            "share of the state that is constant",
        ),
        Fault(
            "stuck",
            "the state of a layer stays as it was after the first token",
            ("G3.5.cosine",),
            ("G3.5.pinned", "D2.saturated", "D2.decay", "D2.selection", "health.score"),
            1.0,
            "share of the state that is never updated",
        ),
        Fault(
            "forgets-at-once",
            "a layer loses its state before every token",
            ("D2.decay",),
            ("D2.selection", "health.score", "G3.5.pinned", "D2.saturated"),
            1.0,
            "share of the state that is lost",
        ),
        Fault("reset-every-k", "all states are set to zero every k tokens", ("D4.reach",), (), 24, "k", layered=False),
        Fault(
            "saturated",
            "the units of a layer sit at plus or minus one",
            ("D2.saturated",),
            ("G3.5.pinned", "G3.5.cosine", "D2.frozen", "S2.dependence", "health.score", "D2.decay", "D2.selection"),
            1.0,
            "share of the units",
        ),
        Fault(
            "dead",
            "the units of a layer are always zero",
            ("D2.dead",),
            (
                "S1.zero",
                "D1.silent",
                "D1.growth",
                "D1.channel",
                "D2.frozen",
                "G3.5.cosine",
                "health.score",
                "S2.dependence",
                "D2.decay",
            ),
            1.0,
            "share of the units",
        ),
        Fault(
            "nan-at-step-k",
            "one unit of a layer becomes NaN at a step",
            ("S1.nonfinite", "D1.nonfinite"),
            ("health.score", "D4.perplexity", "D4.benefit", "D4.readout"),
            100,
            "the step",
        ),
        Fault(
            "not-carried",
            "each call starts from no history",
            ("D4.reach",),
            ("D4.readout", "D2.selection", "D2.decay"),
            1.0,
            "-",
            layered=False,
        ),
        Fault(
            "shared-across-batch",
            "all rows of a batch have the mean of their states",
            ("S2.dependence", "S2.isolation"),
            ("D2.frozen", "D2.decay", "G3.5.cosine", "health.score", *_ALL_MEMORY),
            1.0,
            "share of the mean",
            layered=False,
        ),
        Fault(
            "output-ignores-state",
            "the output is computed from no history",
            ("D4.readout",),
            (),
            1.0,
            "-",
            layered=False,
        ),
        Fault(
            "non-deterministic",
            "noise is added to the state of a layer",
            ("S3.difference",),
            ("S2.isolation", "D2.decay"),
            0.01,
            "noise over the RMS of the state",
        ),
        Fault(
            "branch-off",
            "the output of a branch is multiplied by zero",
            _SILENT,
            _SHARES,
            0.0,
            "what the output is multiplied by",
            layered=False,
            branch=True,
            items=COMPARISONS,
        ),
        Fault(
            "branch-faint",
            "the output of a branch is multiplied by a hundredth",
            ("D3.ratio", "coupling.ratio", "gradient-ratio.first_to_second"),
            ("S4.contribution", *_SHARES),
            0.01,
            "what the output is multiplied by",
            layered=False,
            branch=True,
            items=COMPARISONS,
        ),
        Fault(
            "branch-detached",
            "the output of a branch is detached: right in value, without gradient",
            ("coupling.ratio", "coupling.gradient", "gradient-ratio.first_to_second"),
            (),
            1.0,
            "share of the output that is detached",
            layered=False,
            branch=True,
            items=COMPARISONS,
        ),
        Fault(
            "branch-duplicated",
            "a branch gives out what the other computes",
            ("flow.share", "coupling.ratio", "gradient-ratio.first_to_second"),
            ("S4.contribution", "D3.ratio"),
            1.0,
            "share of the output that is the other's",
            layered=False,
            branch=True,
            items=COMPARISONS,
        ),
        Fault(
            "gate-stuck",
            "the gates that join the branches are stuck at the side of the other branch",
            _SILENT,
            _SHARES,
            1.0,
            "how far the gates are moved to that side",
            layered=False,
            branch=True,
            items=COMPARISONS,
        ),
        Fault(
            "branch-not-carried",
            "each call finds the states of a branch at zero",
            ("flow.share", "coupling.ratio", "D2.decay"),
            ("D2.selection", "health.score"),
            1.0,
            "share of the states that is lost",
            layered=False,
            branch=True,
            items=(*COMPARISONS, "D2"),
        ),
        Fault(
            "constant-selection",
            "what a layer of a branch keeps no longer depends on what is read",
            ("D2.selection",),
            (),
            1.0,
            "share of the retention that is its mean",
            branch=True,
            items=("D2",),
        ),
        Fault(
            "learning-rate-0",
            "the parameters of a branch are trained at a learning rate of zero",
            ("extended.updates",),
            ("extended.balance",),
            0.0,
            "what its learning rate is multiplied by",
            layered=False,
            branch=True,
            items=("extended",),
        ),
    )
}


def planted_in(architecture: str) -> tuple[str, ...]:
    """The faults of the matrix for an architecture: of branches where there are some, else of states; and the control.

    >>> planted_in("two-branch")[:3]
    ('none', 'branch-off', 'branch-faint')
    """
    branched = architecture in BRANCHED
    return tuple(name for name, fault in FAULTS.items() if name == "none" or fault.branch == branched)
