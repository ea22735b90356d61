"""Numbers with intervals: estimates from samples, and computed values with their error bars."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from .._answer import Answer

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate(Answer):
    """A number with an interval.

    Attributes:
        value: the estimate.
        low, high: ends of its confidence interval.
        level: confidence level of the interval; 1 for the error bar of what was computed.
        count: number of samples; 0 for what was computed.
        note: what it assumes, if anything.
    """

    value: float
    low: float
    high: float
    level: float
    count: int
    note: str = ""

    @property
    def error(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    def covers(self, number: float) -> bool:
        """Whether the interval contains a number."""
        return bool(self.low <= number <= self.high)

    def scaled(self, factor: float) -> "Estimate":
        """The estimate of a positive multiple."""
        return replace(self, value=factor * self.value, low=factor * self.low, high=factor * self.high)

    def widened(self, by: float) -> "Estimate":
        """The interval with an independent error in quadrature on either side."""
        low, high = (float(np.hypot(self.value - end, by)) for end in (self.low, self.high))
        return replace(self, low=self.value - low, high=self.value + high)

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        digits = max(0, 1 - int(np.floor(np.log10(self.error)))) if 0 < self.error < np.inf else 4
        note = f" ({self.note})" if self.note else ""
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}{note}"


def computed(value: float, error: float) -> Estimate:
    """A computed number with its error bar."""
    return Estimate(value, value - error, value + error, 1.0, 0)


def mean_of(samples: npt.ArrayLike, level: float = LEVEL, note: str = "") -> Estimate:
    """The mean of independent samples, with Student's interval."""
    x = np.asarray(samples, dtype=float)
    if len(x) < 2:
        raise ValueError(f"{len(x)} sample(s) give no interval; at least two are needed.")
    value, half = float(x.mean()), float(stats.t.ppf((1 + level) / 2, len(x) - 1) * stats.sem(x))
    return Estimate(value, value - half, value + half, level, len(x), note)


def share_of(successes: int, count: int, level: float = LEVEL) -> Estimate:
    """A probability, with Wilson's interval, which has length even where nothing or everything happened."""
    low, high = stats.binomtest(successes, count).proportion_ci(level, method="wilson")
    # the ends are exact where p is 0 or 1
    ends = float(low) if successes else 0.0, float(high) if successes < count else 1.0
    return Estimate(successes / count, *ends, level, count)
