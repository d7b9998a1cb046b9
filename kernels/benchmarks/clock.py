"""Time of several variants in one process, round by round, so that a machine that slows down slows all of them."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

WORTH = 0.05  # seconds that one measurement should take: a faster call is repeated within it
PATIENCE = 6.0  # seconds that one variant may take over all rounds; a slow one has fewer of them, two at least
GPU_CALLS = 20

Call = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """A median with the smallest and the largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Of one value or more.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.0, high=3.0)
        """
        return cls(median(values), min(values), max(values))

    def scaled(self, by: float) -> "Spread":
        """All three times `by`."""
        return Spread(self.median * by, self.low * by, self.high * by)


@dataclass(frozen=True)
class Measured:
    """Seconds a call, by round: of the wall clock and of this process (all its threads)."""

    wall: Mapping[int, float]
    cpu: Mapping[int, float]

    def to_json(self) -> list[dict[int, float]]:
        """As JSON can hold it, which makes text of the rounds."""
        return [dict(self.wall), dict(self.cpu)]

    @classmethod
    def of_json(cls, parts: Iterable[Mapping[str, float]]) -> "Measured":
        """What :meth:`to_json` gave, read back.

        >>> Measured.of_json([{"0": 4.0}, {"0": 3.0}])
        Measured(wall={0: 4.0}, cpu={0: 3.0})
        """
        return cls(*({int(n): seconds for n, seconds in part.items()} for part in parts))

    def spread(self, clock: str) -> Spread:
        """Over the rounds; `clock` is "wall" or "cpu"."""
        return Spread.of(list(getattr(self, clock).values()))

    def ratio_to(self, other: "Measured", clock: str) -> Spread:
        """This time over the other's, round by round where both ran; `clock` is "wall" or "cpu".

        >>> slow, fast = Measured({0: 4.0, 1: 6.0}, {}), Measured({0: 2.0, 1: 2.0, 2: 9.0}, {})
        >>> slow.ratio_to(fast, "wall")
        Spread(median=2.5, low=2.0, high=3.0)
        """
        mine, others = getattr(self, clock), getattr(other, clock)
        return Spread.of([mine[n] / max(others[n], 1e-9) for n in mine if n in others])


def interleaved(calls: Mapping[str, Call], repeats: int, patience: float = PATIENCE) -> dict[str, Measured]:
    """Each call once in each of `repeats` rounds, after a warm-up; slow ones in fewer, spread over the rounds.

    Slow is what would take more than `patience` seconds in all; it has two rounds at least.
    A call of less than 50 ms is repeated, after one more warm-up, until 50 ms are full: the round holds the mean.

    >>> sorted(interleaved({"a": lambda: None, "b": lambda: None}, repeats=3)["a"].wall)
    [0, 1, 2]
    """
    warm = {name: _once(call)[0] for name, call in calls.items()}
    wall: dict[str, dict[int, float]] = {name: {} for name in calls}
    cpu: dict[str, dict[int, float]] = {name: {} for name in calls}
    for n in range(repeats):
        for name, call in calls.items():
            turns = min(repeats, max(2, int(patience / max(warm[name], 1e-9))))
            if n and (n * turns) // repeats == ((n - 1) * turns) // repeats:
                continue
            wall[name][n], cpu[name][n] = _mean(call, warm[name])
    return {name: Measured(wall[name], cpu[name]) for name in calls}


def once(slow: Call, beside: Call, rounds: int) -> tuple[Measured, Measured]:
    """A call that is too slow to repeat, and `rounds` of `beside` before it and again after it, warm.

    The time of the slow call stands in every round, so that the spread of the ratio is that of `beside`.

    >>> slow, beside = once(lambda: None, lambda: None, rounds=1)
    >>> sorted(slow.wall), sorted(beside.wall)
    ([0, 1], [0, 1])
    """
    before = interleaved({"": beside}, rounds)[""]
    wall, cpu = _once(slow)
    after = interleaved({"": beside}, rounds)[""]
    all_wall, all_cpu = ([*a.values(), *b.values()] for a, b in ((before.wall, after.wall), (before.cpu, after.cpu)))
    count = range(len(all_wall))
    return (
        Measured(dict.fromkeys(count, wall), dict.fromkeys(count, cpu)),
        Measured(dict(enumerate(all_wall)), dict(enumerate(all_cpu))),
    )


def _mean(call: Call, expected: float) -> tuple[float, float]:
    times = max(1, math.ceil(WORTH / max(expected, 1e-6)))
    if times > 1:
        call()
    samples = [_once(call) for _ in range(min(times, 1000))]
    return sum(s[0] for s in samples) / len(samples), sum(s[1] for s in samples) / len(samples)


def _once(call: Call) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def interleaved_on_gpu(calls: Mapping[str, Call], repeats: int) -> dict[str, Measured]:
    """The same by CUDA events, 20 calls a round; the two times of a round are the same one, the GPU's."""
    for call in calls.values():
        for _ in range(3):  # compiles and tunes
            call()
    torch.cuda.synchronize()
    found: dict[str, dict[int, float]] = {name: {} for name in calls}
    for n in range(repeats):
        for name, call in calls.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(GPU_CALLS):
                call()
            end.record()
            torch.cuda.synchronize()
            found[name][n] = start.elapsed_time(end) / 1000 / GPU_CALLS
    return {name: Measured(rounds, rounds) for name, rounds in found.items()}
