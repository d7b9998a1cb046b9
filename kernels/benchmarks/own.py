"""Our kernels beside themselves: one thread and two, packed sequences, statistics of the state."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from statecheck_kernels.contract import Observe, StateStatistics
from torch import Tensor

from benchmarks.bars import WITH_ENTROPY, WITHOUT_ENTROPY, bar
from benchmarks.clock import Call, interleaved
from benchmarks.inputs import make
from benchmarks.ours import OPERATIONS, ours, relative_error
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.speed import Problem, Tolerances

SEQUENCES = 16  # packed in one row; 4 of them in a quick run
BOTH = "forward + backward"


def threads(kernel: str, settings: Settings) -> list[Row]:
    """Two threads beside one: the wall time of one over that of two, and the same bits from both."""
    if (os.cpu_count() or 1) < 2:
        return [Row(kernel, "threads", "2 threads", note="needs two processors")]
    rows = []
    for name, backward in (("forward", False), (BOTH, True)):
        problem = Problem.of(kernel, make(kernel, settings.sizes), backward)
        call = problem.call(ours(kernel, settings.form, "statecheck"))
        same = _same(_with_threads(1, call), _with_threads(2, call))
        calls: dict[str, Call] = {str(n): partial(_with_threads, n, call) for n in (1, 2)}
        times = interleaved(calls, settings.repeats)
        note = "the same bits" if same else "not the same bits as one thread"
        row = Row(kernel, "threads", f"{name}, 1 / 2 threads", note, agrees=same)
        rows.append(row.timed(times["2"], times["1"].ratio_to(times["2"], "wall")))
    settings.use_threads()
    return rows


def _with_threads(count: int, call: Call) -> object:
    torch.set_num_threads(count)
    return call()


def _same(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    return torch.equal(first[0], second[0]) and all(torch.equal(x, second[1][name]) for name, x in first[1].items())


def uneven(total: int, sequences: int) -> Tensor:
    """Where sequences of lengths in proportion to 1, 2, 3 ... start and end within `total` steps, shuffled.

    >>> uneven(60, 4).tolist()
    [0, 24, 36, 42, 60]
    """
    weights = torch.arange(1.0, sequences + 1)[torch.randperm(sequences, generator=torch.Generator().manual_seed(5))]
    ends = (weights.cumsum(0) / weights.sum() * total).round().long()
    return torch.cat([torch.zeros(1, dtype=torch.int64), ends])


def packed(kernel: str, settings: Settings) -> list[Row]:
    """Sequences of uneven lengths in one row beside as many of one length in a batch: as many tokens, no padding."""
    sequences = 4 if settings.quick else SEQUENCES
    total = settings.sizes.batch * settings.sizes.length
    cu_seqlens = uneven(total, sequences)
    in_a_row = make(kernel, replace(settings.sizes, batch=1, length=total))
    in_a_batch = make(kernel, replace(settings.sizes, batch=sequences, length=total // sequences))
    rows, limits = [], Tolerances()
    for name, backward in (("forward", False), (BOTH, True)):
        variant = ours(kernel, settings.form, "packed", cu_seqlens)
        problem = Problem.of(kernel, in_a_row, backward, cu_seqlens)
        call = problem.call(variant)
        outputs, gradients = problem.error(variant, call())
        row = Row(kernel, "packed", name, error=max(outputs, gradients), bar=bar(kernel, "packed", name))
        if outputs > limits.ours or gradients > limits.of_gradients * limits.ours:
            rows.append(replace(row, agrees=False, note="not timed: it disagrees with the reference"))
            continue
        problem = Problem(in_a_batch, _upstream(kernel, in_a_batch) if backward else None, torch.empty(0), {})
        unpacked = problem.call(ours(kernel, settings.form, "unpacked"))
        times = interleaved({"packed": call, "unpacked": unpacked}, settings.repeats)
        note = f"{sequences} sequences in {total} steps / in a batch"
        rows.append(
            replace(row, note=note).timed(times["packed"], times["packed"].ratio_to(times["unpacked"], settings.clock))
        )
    return rows


def _upstream(kernel: str, inputs: Mapping[str, Tensor]) -> Tensor:
    return torch.ones_like(inputs["v" if kernel == "wkv6" else "x"])


def statistics(kernel: str, settings: Settings) -> list[Row]:
    """A forward pass with the statistics of every state, without and with the entropy, over a bare one."""
    inputs = make(kernel, settings.sizes)
    calls: dict[str, Call] = {"bare": partial(_observed, kernel, inputs, settings.form, None)}
    rows = []
    for name, entropy in ((WITHOUT_ENTROPY, False), (WITH_ENTROPY, True)):
        observe = Observe(entropy=entropy)
        calls[name] = partial(_observed, kernel, inputs, settings.form, observe)
        found = _observed(kernel, inputs, settings.form, observe)
        expected = _observed(kernel, {n: x.double() for n, x in inputs.items()}, "reference", observe)
        assert found is not None
        assert expected is not None
        error, why = _error(found, expected)
        rows.append(Row(kernel, "statistics", name, why, error=error, agrees=not why))
    times = interleaved(calls, settings.repeats)
    return [row.timed(times[row.name], times[row.name].ratio_to(times["bare"], settings.clock)) for row in rows]


def _observed(
    kernel: str, inputs: Mapping[str, Tensor], form: str | None, observe: Observe | None
) -> StateStatistics | None:
    with torch.no_grad():
        found: StateStatistics | None = OPERATIONS[kernel](**inputs, statistics=observe, form=form).statistics
        return found


STATISTICS = 1e-4  # largest relative error
COUNTS = 0.01  # share of counts that may differ: a unit at the limit falls to either side


def _error(found: StateStatistics, expected: StateStatistics) -> tuple[float, str]:
    """The largest relative error, and what is wrong if it is too large."""
    errors = {}
    for name, tensor in expected.items().items():
        mine = found.items()[name]
        if not tensor.is_floating_point():
            share = float((mine != tensor).double().mean()) if mine.numel() else 0.0
            if share > COUNTS:
                return share, f"{name} differs from the reference at {share:.1%} of all steps and heads"
            continue
        errors[name] = relative_error(mine, tensor)
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], "" if errors[worst] <= STATISTICS else f"{worst} differs from the reference"
