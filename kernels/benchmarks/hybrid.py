"""The reference hybrid on the kernels: the cost of the statistics of its states, and of 262,144 tokens.

Needs a checkout, with `reference_models/`; each figure is taken in a process of its own (`benchmarks.hybrid_runs`).
"""

from benchmarks.bars import WITH_ENTROPY, WITHOUT_ENTROPY, bar
from benchmarks.clock import Measured, Spread
from benchmarks.memory import PLAIN_MALLOC, REPOSITORY, STATUS, in_a_process
from benchmarks.rows import Row
from benchmarks.settings import Settings

RUNS = "benchmarks.hybrid_runs"
PEAK, A_TOKEN = "memory, 262144 / 4096 tokens", "time, last of 262144 / 4096 tokens"


def hybrid(settings: Settings) -> list[Row]:
    """All rows of the hybrid; those of 262,144 tokens only with `--long`."""
    if not (REPOSITORY / "reference_models").is_dir():
        return [_row(name, "needs a checkout") for name in (WITHOUT_ENTROPY, WITH_ENTROPY)]
    return [*_statistics(settings), *_long(settings)]


def _row(name: str, note: str) -> Row:
    return Row("hybrid", "hybrid", name, note, bar=bar("hybrid", "hybrid", name))


def _statistics(settings: Settings) -> list[Row]:
    """Statistics of every state after every one of 4,096 tokens, over a bare forward pass, in the same rounds."""
    told = {"what": "statistics", "threads": settings.threads, "quick": settings.quick, "repeats": settings.repeats}
    found = in_a_process(RUNS, told)
    if found["missing"]:
        return [_row(name, found["missing"]) for name in (WITHOUT_ENTROPY, WITH_ENTROPY)]
    times = {name: Measured.of_json(parts) for name, parts in found["times"].items()}
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
