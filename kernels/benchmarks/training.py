"""Whole training steps of the reference models: over a bound, a plain GPT, other libraries, and without a compiler.

Needs a checkout, with `reference_models/`; each table is taken in one process (`benchmarks.training_runs`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.bars import bar
from benchmarks.clock import Measured
from benchmarks.memory import REPOSITORY, in_a_process
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.speed import GEMM_SHAPE

RUNS = "benchmarks.training_runs"
HYBRID, MAMBA = "hybrid-8m", "mamba-1"
BOUND, BESIDE, STEP = "step / GEMM bound", "step / GPT of its size", "step, chunked / compiled"
MAMBAPY, TRANSFORMERS = "mambapy", "transformers slow path"
SAME_SIZE = 0.03  # how far the GPT's parameters may be from the hybrid's
MINE, THEIRS, CHUNKED, GPT, BEFORE, AFTER = "ours", "theirs", "chunked", "GPT", "GEMM before", "GEMM after"
FLOPS_OF_GEMM = 2.0 * GEMM_SHAPE[0] * GEMM_SHAPE[1] * GEMM_SHAPE[2]


def training(settings: Settings) -> list[Row]:
    """All rows of training steps; transformers' slow path, which takes a minute or more for one, only with `--long`."""
    if not (REPOSITORY / "reference_models").is_dir():
        names = {HYBRID: (BOUND, BESIDE, STEP), MAMBA: (MAMBAPY, TRANSFORMERS)}
        return [_row(kernel, name, "needs a checkout") for kernel, rows in names.items() for name in rows]
    return [*_hybrid(settings), *_mamba(settings)]


def _row(kernel: str, name: str, note: str) -> Row:
    return Row(kernel, "training", name, note, bar=bar(kernel, "training", name))


def _told(what: str, settings: Settings) -> dict[str, Any]:
    asked = ("threads", "quick", "form", "repeats", "keep_memory")
    return {"what": what, **{name: getattr(settings, name) for name in asked}}


def bound(times: Mapping[str, Measured], flops: float) -> Measured:
    """Seconds that `flops` take at the rate of the matrix products before and after the step, round by round.

    >>> product = 2 * FLOPS_OF_GEMM
    >>> bound({"GEMM before": Measured({0: 1.0}, {0: 1.0}), "GEMM after": Measured({0: 3.0}, {0: 2.0})}, product)
    Measured(wall={0: 4.0}, cpu={0: 3.0})
    """
    before, after = times[BEFORE], times[AFTER]
    by = flops / FLOPS_OF_GEMM
    wall, cpu = (
        {n: by * (first[n] + last[n]) / 2 for n in first}
        for first, last in ((before.wall, after.wall), (before.cpu, after.cpu))
    )
    return Measured(wall, cpu)


def _hybrid(settings: Settings) -> list[Row]:
    """hybrid-8m over its bound, over a GPT of its size, and without the compiled kernels over with them."""
    found = in_a_process(RUNS, _told("hybrid", settings))
    times = {name: Measured.of_json(parts) for name, parts in found["times"].items()}
    clock, mine = settings.clock, times[MINE]
    flops = 6.0 * found["parameters"][MINE] * found["tokens"]
    limit = bound(times, flops)
    size, beside = (found["parameters"][name] / 1e6 for name in (MINE, GPT))
    note = (
        f"form {', '.join(found['forms'][MINE])}; 6 x {size:.2f}M parameters x {found['tokens']} tokens, "
        f"{flops / 1e9:.0f} GF, at the {flops / limit.spread(clock).median / 1e9:.0f} GF/s of float32 "
        f"{'x'.join(map(str, GEMM_SHAPE))} just before and after each step"
    )
    over_bound = _learning(_row(HYBRID, BOUND, note), found, MINE).timed(mine, mine.ratio_to(limit, clock))
    note = f"{beside:.2f}M parameters, {_milliseconds(times[GPT], clock)}; ours {size:.2f}M: the row"
    over_gpt = _learning(_row(HYBRID, BESIDE, note), found, GPT).timed(mine, mine.ratio_to(times[GPT], clock))
    if abs(beside / size - 1) > SAME_SIZE:
        over_gpt = replace(over_gpt, agrees=False, note=f"not of its size: {note}")
    return [over_bound, over_gpt, _chunked(found, times, clock)]


def _learning(row: Row, found: Mapping[str, Any], name: str) -> Row:
    """The row, which counts for nothing if the steps of that model do not learn their batch."""
    return row if found["falls"][name] else replace(row, agrees=False, note=f"the loss of {name} does not fall")


def _chunked(found: Mapping[str, Any], times: Mapping[str, Measured], clock: str) -> Row:
    mine, chunked = (", ".join(found["forms"][name]) or "none" for name in (MINE, CHUNKED))
    if "chunked" not in chunked:
        return _row(HYBRID, STEP, f"the hybrid does not use the kernels (found {chunked})")
    if mine == chunked:
        return _row(HYBRID, STEP, "only the chunked form is here: nothing to compare it with")
    note = f"form {mine}: {_milliseconds(times[MINE], clock)}; form {chunked}: the row"
    row = _with_errors(_row(HYBRID, STEP, note), found)
    return row.timed(times[CHUNKED], times[CHUNKED].ratio_to(times[MINE], clock)) if row.agrees else row


def _mamba(settings: Settings) -> list[Row]:
    """Four blocks of Mamba-1 in other libraries, with our weights, over ours."""
    peers = (MAMBAPY, TRANSFORMERS) if settings.long else (MAMBAPY,)
    found = in_a_process(RUNS, {**_told("mamba", settings), "peers": peers})
    size = f"{found['parameters'] / 1e6:.2f}M parameters, form {', '.join(found['forms'])}"
    rows = [_peer(name, found["peers"][name], size, settings.clock) for name in peers]
    slow = "a step of it takes a minute or more: --long"
    return rows if settings.long else [*rows, _row(MAMBA, TRANSFORMERS, slow)]


def _peer(name: str, found: Mapping[str, Any], size: str, clock: str) -> Row:
    if found["missing"]:
        return _row(MAMBA, name, found["missing"])
    row = _with_errors(_row(MAMBA, name, ""), found)
    if not row.agrees:
        return row
    theirs, mine = (Measured.of_json(found["times"][who]) for who in (THEIRS, MINE))
    counted = "; one step of it (n = 1)" if found["once"] else ""
    row = replace(row, note=f"ours {_milliseconds(mine, clock)}, {size}{counted}")
    return row.timed(theirs, theirs.ratio_to(mine, clock))


def _with_errors(row: Row, found: Mapping[str, Any]) -> Row:
    """The row with how far the first step, from the same weights, is from ours."""
    loss, gradients = found["errors"]
    row = row.with_error(max(loss, gradients), found["agrees"])
    why = f"no time is given: after one step the loss is off by {loss:.1e}, gradients by {gradients:.1e}"
    return row if found["agrees"] else replace(row, note=why)


def _milliseconds(measured: Measured, clock: str) -> str:
    return f"{1000 * measured.spread(clock).median:.0f} ms"
