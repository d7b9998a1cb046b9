"""The bars: what a ratio of one run has to reach, at the sizes of `inputs.FULL`, float32, one thread.

A time is compared as peer's / ours, so that more is better; where ours is set beside our own (packed, statistics,
memory, hybrid) or over a bound and another kind of model (training steps of hybrid-8m), less is better.
"""

from dataclasses import dataclass

GEMM = "share of GEMM rate"
WITHOUT_ENTROPY, WITH_ENTROPY = "statistics", "statistics with entropy"


@dataclass(frozen=True)
class Bar:
    """`must` is required, `stretch` is hoped for (None: nothing more); `most` where the ratio has to stay below."""

    must: float
    stretch: float | None = None
    most: bool = False

    def holds(self, ratio: float) -> bool:
        """Whether the median reaches what is required; NaN does not.

        >>> Bar(20).holds(21.0), Bar(1.2, most=True).holds(1.3), Bar(20).holds(float("nan"))
        (True, False, False)
        """
        return ratio <= self.must if self.most else ratio >= self.must

    def stretched(self, ratio: float) -> bool:
        """Whether it reaches the stretch as well."""
        return self.stretch is not None and (ratio <= self.stretch if self.most else ratio >= self.stretch)


BARS: dict[tuple[str, str, str], Bar] = {  # kernel, kind, name of the row
    ("selective_scan", "forward", "transformers slow path"): Bar(20, 30),
    ("selective_scan", "forward", "mambapy pscan"): Bar(30, 45),
    ("selective_scan", "backward", "mambapy pscan"): Bar(30, 45),
    ("selective_scan", "backward", "eager loop, unbind"): Bar(8, 12),
    ("selective_scan", "backward", "eager loop, checkpointed"): Bar(8, 12),
    ("wkv6", "forward", "fla naive recurrent"): Bar(10, 15),
    ("wkv6", "forward", GEMM): Bar(0.45, 0.65),
    ("wkv6", "backward", "fla naive recurrent"): Bar(80, 120),
    ("wkv6", "backward", "our chunked form"): Bar(2.5, 4),
    ("hybrid", "hybrid", WITHOUT_ENTROPY): Bar(1.25, 1.15, most=True),
    ("hybrid", "hybrid", WITH_ENTROPY): Bar(1.5, 1.3, most=True),
    ("hybrid", "hybrid", "memory, 262144 / 4096 tokens"): Bar(1.1, most=True),
    ("hybrid", "hybrid", "time, last of 262144 / 4096 tokens"): Bar(1.2, most=True),
    ("hybrid-8m", "training", "step / GEMM bound"): Bar(2.0, 1.6, most=True),
    ("hybrid-8m", "training", "step / GPT of its size"): Bar(1.4, most=True),
    ("hybrid-8m", "training", "step, chunked / compiled"): Bar(2.5, most=True),
    ("mamba-1", "training", "mambapy"): Bar(5),
    ("mamba-1", "training", "transformers slow path"): Bar(50),
}
PACKED = Bar(1.2, most=True)  # every kernel, forward and with the backward pass
MEMORY = Bar(2.0, most=True)  # likewise


def bar(kernel: str, kind: str, name: str) -> Bar | None:
    """The bar of a row, or None.

    >>> bar("ssd", "packed", "forward").must
    1.2
    """
    return {"packed": PACKED, "memory": MEMORY}.get(kind) or BARS.get((kernel, kind, name))
