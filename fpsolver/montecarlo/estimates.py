"""Numbers with intervals: estimates from samples, and computed values with their error bars."""

from dataclasses import dataclass

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
        return Estimate(factor * self.value, factor * self.low, factor * self.high, self.level, self.count, self.note)

    def widened(self, by: float) -> "Estimate":
        """The interval with an independent error in quadrature on either side."""
        low, high = (np.hypot(self.value - self.low, by), np.hypot(self.high - self.value, by))
        ends = float(self.value - low), float(self.value + high)
        return Estimate(self.value, *ends, self.level, self.count, self.note)

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
    return normal(float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))), len(x), level, note, len(x) - 1)


def normal(value: float, deviation: float, count: int, level: float = LEVEL, note: str = "", freedom: float = np.inf) -> Estimate:  # fmt: skip  # noqa: E501
    """An estimate with a symmetric interval from its standard deviation."""
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * deviation
    return Estimate(value, value - half, value + half, level, count, note)


def share_of(successes: int, count: int, level: float = LEVEL) -> Estimate:
    """A probability, with Wilson's interval, which has length even where nothing or everything happened."""
    z = float(stats.norm.ppf((1 + level) / 2))
    p, w = successes / count, z * z / count
    middle = (p + w / 2) / (1 + w)
    half = np.sqrt(p * (1 - p) * w + w * w / 4) / (1 + w)
    # the ends are exact where p is 0 or 1
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == count else min(1.0, middle + half)
    return Estimate(p, low, high, level, count)


def tail_mean(exits: npt.NDArray[np.float64], horizon: float, level: float = LEVEL) -> Estimate:
    """Mean of times of which those beyond ``horizon`` are unknown (not a number), if their tail is exponential.

    The mean of min(τ, horizon) plus P(τ > horizon)/r, where r is the rate of exits in the second half of the time.
    The interval is that of the delta method, the rate's uncertainty included; it knows nothing of other tails.

    Raises:
        ValueError: nothing left in the second half of the time, so that the rate is unknown.
    """
    n, middle = len(exits), horizon / 2
    stopped = np.where(np.isnan(exits), horizon, exits)
    alive = np.isnan(exits)
    events = ((stopped > middle) & ~alive).astype(float)
    risk = np.maximum(stopped - middle, 0.0)
    if not events.any():
        raise ValueError(f"no path left between {middle:g} and {horizon:g}: the rate of exits is unknown.")
    rate, left = events.mean() / risk.mean(), alive.mean()
    value = float(stopped.mean() + left / rate)
    # value = E stopped + E alive · E risk / E events: linearised in each path's share
    share = stopped + alive / rate + left * (risk - events / rate) / events.mean()
    deviation = float(share.std(ddof=1) / np.sqrt(n))
    return normal(value, deviation, n, level, f"exponential tail assumed for {left:.1%} of the paths")
