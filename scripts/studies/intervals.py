"""Intervals over a few seeds. Student's t: with three to five seeds a bootstrap passes too easily."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def inside(self, low: float, high: float) -> str:
        """Where the interval lies against a band: "in", "out", or "unclear" where it reaches across an edge.

        >>> Interval(0.3, 0.25, 0.4).inside(0.2, 0.46), Interval(0.3, 0.25, 0.4).inside(0.08, 0.11)
        ('in', 'out')
        """
        if self.low >= low and self.high <= high:
            return "in"
        return "out" if self.low > high or self.high < low else "unclear"

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of independent values, t-interval.

    By hand: of 1, 2, 3 the standard error is 1 / sqrt(3), and t(2) at 97.5 % is 4.303.

    >>> print(mean([1.0, 2.0, 3.0]))
    2 [-0.484, 4.48]
    """
    x = np.asarray(values, dtype=float)
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    reach = float(stats.t.ppf(0.5 + level / 2, len(x) - 1)) * error
    return within(float(x.mean()), reach)


def geometric(values: Sequence[float]) -> Interval:
    """The geometric mean of independent positive values, t-interval of their logarithms.

    >>> print(geometric([1.0, 2.0, 4.0]))
    2 [0.357, 11.2]
    """
    return _exponential(mean(np.log(np.asarray(values, dtype=float)).tolist()))


def pooled(groups: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
    """The geometric mean of each group of positive values, with one spread for all: that of logarithms within groups.

    For many groups of two or three seeds, each of which alone tells too little of the spread. By hand: the logarithms
    (base 2) of 1, 4 and of 2, 8 lie 1 from their means, s^2 = (2 + 2) / 2, and t(2) * s / sqrt(2) = 4.303.

    >>> {name: str(found) for name, found in pooled({"a": [1.0, 4.0], "b": [2.0, 8.0]}).items()}
    {'a': '2 [0.101, 39.5]', 'b': '4 [0.203, 78.9]'}
    """
    logs = {name: np.log(np.asarray(values, dtype=float)) for name, values in groups.items()}
    freedom = sum(len(x) - 1 for x in logs.values())
    spread = math.sqrt(sum(float(((x - x.mean()) ** 2).sum()) for x in logs.values()) / freedom)
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * spread
    return {name: _exponential(within(float(x.mean()), reach / math.sqrt(len(x)))) for name, x in logs.items()}


def within(value: float, reach: float) -> Interval:
    """The interval that reaches as far to both sides."""
    return Interval(value, value - reach, value + reach)


def quotient(above: Sequence[float], below: Sequence[float]) -> Interval:
    """The geometric mean of one sample over that of another, independent one: Welch's interval of the logarithms.

    >>> print(quotient([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]))
    2 [0.416, 9.63]
    """
    a, b = np.log(np.asarray(above, dtype=float)), np.log(np.asarray(below, dtype=float))
    found = stats.ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return _exponential(Interval(float(a.mean() - b.mean()), float(found.low), float(found.high)))


def _exponential(one: Interval) -> Interval:
    return Interval(math.exp(one.value), math.exp(one.low), math.exp(one.high))
