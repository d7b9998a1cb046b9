"""Forward, and forward with backward, beside every peer: agreement first, then time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.bars import GEMM, bar
from benchmarks.clock import Call, Measured, interleaved
from benchmarks.inputs import Inputs, flops, make
from benchmarks.ours import OUR_CHUNKED, form_that_runs, largest_error, ours, relative_error, truth
from benchmarks.peers import peers
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.variants import Missing, Variant

GEMM_SHAPE = (2048, 1024, 1024)


@dataclass(frozen=True)
class Tolerances:
    """Largest relative error of outputs that is agreement; for gradients, sums over the whole length, some times it."""

    ours: float = 1e-5
    theirs: float = 1e-4
    of_gradients: float = 10.0


@dataclass(frozen=True)
class Problem:
    """Inputs, an upstream gradient of the outputs (None: forward alone), and what should come out, in float64."""

    inputs: Inputs
    upstream: Tensor | None
    outputs: Tensor
    gradients: Inputs

    @classmethod
    def of(cls, kernel: str, inputs: Inputs, backward: bool, cu_seqlens: Tensor | None = None) -> "Problem":
        """The problem that `inputs` pose, solved by the reference."""
        upstream = None
        if backward:
            like = inputs["v" if kernel == "wkv6" else "x"]
            upstream = torch.randn(like.shape, generator=torch.Generator().manual_seed(7)).to(like)
        return cls(inputs, upstream, *truth(kernel, inputs, upstream, cu_seqlens))

    def call(self, variant: Variant) -> Call:
        """What is timed: the inputs already lie in the variant's layout."""
        own = variant.prepared(self.inputs, gradients=self.upstream is not None)
        if self.upstream is None:
            return partial(variant.forward, own)
        return partial(variant.both, own, variant.prepare("outputs", self.upstream))

    def error(self, variant: Variant, result: object) -> tuple[float, float]:
        """The relative errors of outputs and gradients of what such a call gave."""
        if self.upstream is None:
            assert isinstance(result, Tensor)
            return relative_error(variant.back("outputs", result), self.outputs), 0.0
        assert isinstance(result, tuple)
        outputs, gradients = result
        led_back = {name: variant.back(name, gradient) for name, gradient in gradients.items()}
        return relative_error(variant.back("outputs", outputs), self.outputs), largest_error(led_back, self.gradients)


def speed(kernel: str, kind: str, settings: Settings) -> list[Row]:
    """A row for the form that runs, for our chunked form and for every peer; `kind` is "forward" or "backward"."""
    inputs = make(kernel, settings.sizes)
    mine = ours(kernel, settings.form, f"statecheck {form_that_runs(kernel, inputs, settings.form)}")
    found = [mine, ours(kernel, "chunked", OUR_CHUNKED), *_bearable(peers(kernel), kind, settings)]
    problem = Problem.of(kernel, inputs, backward=kind == "backward")
    beside: dict[str, Call] = {}
    if (kernel, kind) == ("wkv6", "forward"):
        m, k, n = GEMM_SHAPE
        beside[GEMM] = partial(torch.mm, torch.randn(m, k), torch.randn(k, n))
    timer = partial(interleaved, repeats=settings.repeats)
    rows, times = compare(kernel, kind, found, problem, Tolerances(), timer, settings.clock, beside)
    return rows + (_gemm(kernel, kind, times, mine.name, settings) if GEMM in times else [])


def compare(
    kernel: str,
    kind: str,
    found: list[Variant | Missing],
    problem: Problem,
    tolerances: Tolerances,
    timer: Callable[[dict[str, Call]], dict[str, Measured]],
    clock: str,
    beside: dict[str, Call],
) -> tuple[list[Row], dict[str, Measured]]:
    """Agreement of each variant, then the times of those that agree; the first is ours, the ratios are over it.

    `beside` is timed in the same rounds and has no row. Where ours disagrees nothing is timed.
    """
    mine = found[0].name
    rows, calls = [], dict(beside)
    for variant in found:
        limit = tolerances.ours if variant.name == mine else tolerances.theirs
        row = _agreement(kernel, kind, variant, problem, limit, tolerances.of_gradients)
        rows.append(row)
        if row.error is not None and row.agrees and isinstance(variant, Variant):
            calls[variant.name] = problem.call(variant)
    if mine not in calls:
        return rows, {}
    times = timer(calls)
    return [_with_times(row, times, mine, clock) for row in rows], times


def _bearable(found: list[Variant | Missing], kind: str, settings: Settings) -> list[Variant | Missing]:
    """The peers with those left out, by name, that have no backward pass or one of minutes."""
    if kind == "forward":
        return found
    bearable: list[Variant | Missing] = []
    for variant in found:
        if isinstance(variant, Variant) and not variant.backward:
            variant = Missing(variant.name, "has no backward pass")
        elif isinstance(variant, Variant) and variant.slow and not settings.long:
            variant = Missing(variant.name, "its backward pass takes minutes: --long")
        bearable.append(variant)
    return bearable


def _agreement(
    kernel: str, kind: str, variant: Variant | Missing, problem: Problem, tolerance: float, of_gradients: float
) -> Row:
    row = partial(Row, kernel, kind, variant.name, bar=bar(kernel, kind, variant.name))
    if isinstance(variant, Missing):
        return row(note=variant.why)
    try:
        outputs, gradients = problem.error(variant, problem.call(variant)())
    except Exception as failure:  # whatever a peer raises, the others can still be measured
        if variant.name.startswith("statecheck"):
            raise
        return row(note=f"fails: {type(failure).__name__}: {failure}")
    agrees = outputs <= tolerance and gradients <= of_gradients * tolerance
    note = "" if agrees else f"not timed: outputs off by {outputs:.1e}, gradients by {gradients:.1e}"
    return row(error=max(outputs, gradients), agrees=agrees, note=note)


def _with_times(row: Row, times: dict[str, Measured], mine: str, clock: str) -> Row:
    if row.name not in times:
        return row
    measured = times[row.name]
    return row.timed(measured, measured.ratio_to(times[mine], clock))


def _gemm(kernel: str, kind: str, times: dict[str, Measured], mine: str, settings: Settings) -> list[Row]:
    """The rate of ours as a share of the rate of a matrix product that ran in the same rounds."""
    m, k, n = GEMM_SHAPE
    flops_of_gemm = 2.0 * m * k * n
    share = times[GEMM].ratio_to(times[mine], settings.clock).scaled(flops(kernel, settings.sizes) / flops_of_gemm)
    seconds = times[GEMM].spread(settings.clock).median
    note = f"{'x'.join(map(str, GEMM_SHAPE))}: {flops_of_gemm / max(seconds, 1e-9) / 1e9:.0f} GF/s"
    row = Row(kernel, kind, GEMM, note=note, bar=bar(kernel, kind, GEMM))
    return [row.timed(times[GEMM], share)]
