"""The table of culprits: faults that `statecheck.testing.plant` puts into a healthy model, and who must catch them.

`statecheck calibrate` plants each in every architecture and prints which checks failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: The healthy models of the matrix; `statecheck.testing.calibration` makes them.
ARCHITECTURES = ("selective-counter", "gru-filter")


@dataclass(frozen=True)
class Fault:
    """A fault: its sin, the part that must fail, the parts that it really breaks as well, a default severity.

    `layered` faults sit in one layer, which the failing part must name.
    """

    name: str
    sin: str
    caught_by: tuple[str, ...]
    follows: tuple[str, ...]
    severity: float
    meaning: str
    layered: bool = True


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
    )
}
