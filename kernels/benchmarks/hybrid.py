"""The reference hybrid on the kernels: a training step with and without the compiled ones, the cost of statistics.

Needs a checkout, with `reference_models/`; each figure is taken in a process of its own (`benchmarks.hybrid_runs`).
"""

from typing import Any

from benchmarks.bars import WITH_ENTROPY, WITHOUT_ENTROPY, bar
from benchmarks.clock import Measured, Spread
from benchmarks.memory import PLAIN_MALLOC, REPOSITORY, STATUS, in_a_process
from benchmarks.rows import Row
from benchmarks.settings import Settings

ROUNDS = 3
RUNS = "benchmarks.hybrid_runs"
STEP = "step, chunked / compiled"
PEAK, A_TOKEN = "memory, 262144 / 4096 tokens", "time, last of 262144 / 4096 tokens"


def hybrid(settings: Settings) -> list[Row]:
    """All rows of the hybrid; those of 262,144 tokens only with `--long`."""
    if not (REPOSITORY / "reference_models").is_dir():
        return [_row(name, "needs a checkout") for name in (STEP, WITHOUT_ENTROPY, WITH_ENTROPY)]
    return [*_steps(settings), *_statistics(settings), *_long(settings)]


def _row(name: str, note: str) -> Row:
    return Row("hybrid", "hybrid", name, note, bar=bar("hybrid", "hybrid", name))


def _steps(settings: Settings) -> list[Row]:
    """Training steps of the whole model with the form that runs and with the chunked one, in processes in turn."""
    told = {"what": "steps", "threads": settings.threads, "quick": settings.quick}
    mine, chunked = _Rounds(), _Rounds()
    for n in range(1 if settings.quick else ROUNDS):
        mine.add(
            n, in_a_process(RUNS, told, {} if settings.form is None else {"STATECHECK_KERNELS_FORM": settings.form})
        )
        chunked.add(n, in_a_process(RUNS, told, {"STATECHECK_KERNELS_FORM": "chunked"}))
    note = f"form {mine.forms}: {_milliseconds(mine, settings)}; form {chunked.forms}: the row"
    row = _row(STEP, note)
    if "chunked" not in chunked.forms:
        return [_row(STEP, f"the hybrid does not use the kernels (found {chunked.forms})")]
    if mine.forms == chunked.forms:
        return [_row(STEP, "only the chunked form is here: nothing to compare it with")]
    times = chunked.measured()
    return [row.timed(times, times.ratio_to(mine.measured(), settings.clock))]


class _Rounds:
    """What several processes measured."""

    def __init__(self) -> None:
        self.wall: dict[int, float] = {}
        self.cpu: dict[int, float] = {}
        self.forms = ""

    def add(self, n: int, found: dict[str, Any]) -> None:
        self.wall[n], self.cpu[n] = found["wall"], found["cpu"]
        self.forms = ", ".join(found["forms"]) or "none"

    def measured(self) -> Measured:
        return Measured(self.wall, self.cpu)


def _milliseconds(rounds: _Rounds, settings: Settings) -> str:
    return f"{1000 * rounds.measured().spread(settings.clock).median:.0f} ms"


def _statistics(settings: Settings) -> list[Row]:
    """Statistics of every state after every one of 4,096 tokens, over a bare forward pass, in the same rounds."""
    told = {"what": "statistics", "threads": settings.threads, "quick": settings.quick, "repeats": settings.repeats}
    found = in_a_process(RUNS, told)
    if found["missing"]:
        return [_row(name, found["missing"]) for name in (WITHOUT_ENTROPY, WITH_ENTROPY)]
    times = {
        name: Measured(*({int(n): x for n, x in part.items()} for part in parts))
        for name, parts in found["times"].items()
    }
    rows = []
    for name in (WITHOUT_ENTROPY, WITH_ENTROPY):
        row = _row(name, f"{found['tokens']} tokens, {found['states']} states, form {', '.join(found['forms'])}")
        ratio = times[name].ratio_to(times["bare"], settings.clock)
        rows.append(row.with_error(found["error"], found["error"] <= 1e-4).timed(times[name], ratio))
    return rows


def _long(settings: Settings) -> list[Row]:
    """Memory and time of 262,144 tokens beside 4,096, read in pieces of 4,096; each piece's statistics are dropped."""
    if not settings.long or not STATUS.exists():
        return [_row(name, "--long, on Linux") for name in (PEAK, A_TOKEN)]
    told = {"what": "long", "threads": settings.threads, "quick": settings.quick}
    short, long = (
        in_a_process(RUNS, {**told, "pieces": pieces}, PLAIN_MALLOC) for pieces in (1, 8 if settings.quick else 64)
    )
    if short["missing"]:
        return [_row(name, short["missing"]) for name in (PEAK, A_TOKEN)]
    memory = long["extra"] / max(short["extra"], 1)
    megabytes = " / ".join(f"{x['extra'] / 1e6:.1f}" for x in (long, short))
    return [
        _row(PEAK, f"{megabytes} MB beyond the model").with_ratio(Spread.of([memory])),
        _row(A_TOKEN, f"{long['tokens']} tokens in {long['seconds']:.1f} s").with_ratio(Spread.of(long["late"])),
    ]
