"""Answers of Monte Carlo: what is estimated from the paths, with confidence intervals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .estimates import LEVEL, Estimate, mean_of, normal, share_of, tail_mean

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Ensemble:
    """Paths that ``simulate`` has followed; the same on all ranks.

    Every estimate comes with its confidence interval (95 % unless ``level`` says otherwise).  Times are those of the
    process; ``time_per_step`` of them are one step of the algorithm.

    Attributes:
        method: "sde" or "sgd".
        exit_times: when each path left, shape (paths,), not a number for those that did not.
        exit_parts: names of the parts through which they left, empty for those that did not, shape (paths,).
        exit_points: where, shape (paths, d).
        times: recorded times; for "sgd" those of whole steps.
        positions: shape (times, paths, d), not a number for paths that have left.
        horizon: time at which paths that had not left were stopped.
        time_per_step: time of one step of the algorithm, None for a process without one.
        stats: paths, path steps, seconds, step (largest length), backend, seed, blocks.
    """

    method: str
    exit_times: Array
    exit_parts: Array
    exit_points: Array
    times: Array
    positions: Array
    horizon: float
    absorbing: tuple[str, ...]
    time_per_step: float | None
    stats: Mapping[str, Any]
    convexity: Array | None = None

    def __len__(self) -> int:
        return len(self.exit_times)

    def mean_exit_time(self, tail: str = "refuse", level: float = LEVEL) -> Estimate:
        """Mean of the exit time.

        Args:
            tail: what to do when some paths had not left at the horizon: "refuse", "exponential" (extrapolate with the
                rate of exits in the second half, labelled so), or "bound" (mean of min(τ, horizon), a lower bound).
            level: confidence level.

        Raises:
            ValueError: nothing absorbs, or paths were stopped and ``tail`` is "refuse".
        """
        self._needs_exits("mean_exit_time")
        if tail not in ("refuse", "exponential", "bound"):
            raise ValueError(f"mean_exit_time: tail is {tail!r}; expected 'refuse', 'exponential' or 'bound'.")
        stopped = int(np.isnan(self.exit_times).sum())
        if not stopped:
            return mean_of(self.exit_times, level)
        if tail == "refuse":
            raise ValueError(
                f"{stopped} of {len(self)} paths had not left at time {self.horizon:g}, so their mean is unknown. Give "
                "simulate a larger horizon=, or take tail='exponential' (assumed) or tail='bound' (a lower bound)."
            )
        if tail == "exponential":
            return tail_mean(self.exit_times, self.horizon, level)
        times = np.where(np.isnan(self.exit_times), self.horizon, self.exit_times)
        return mean_of(times, level, f"lower bound: {stopped / len(self):.1%} of the paths were stopped")

    def exit_probability(self, part: str, level: float = LEVEL) -> Estimate:
        """Probability to leave through a part, before the horizon if there is one (Wilson's interval)."""
        self._needs_exits("exit_probability")
        if part not in self.absorbing:
            raise ValueError(f"exit_probability: no absorbing part {part!r}; they are {', '.join(self.absorbing)}.")
        return share_of(int((self.exit_parts == part).sum()), len(self), level)

    def survival(self, times: Any, level: float = LEVEL) -> list[Estimate]:
        """P(τ > t) at times up to the horizon (Wilson's intervals)."""
        self._needs_exits("survival")
        t = np.atleast_1d(np.asarray(times, dtype=float))
        if (t > self.horizon).any():
            raise ValueError(f"survival: paths were stopped at {self.horizon:g}; {t.max():g} is later.")
        left = np.sort(self.exit_times[~np.isnan(self.exit_times)])
        return [share_of(len(self) - int(np.searchsorted(left, s, side="right")), len(self), level) for s in t]

    def expectation(self, g: Callable[[Array], Any], level: float = LEVEL) -> list[Estimate]:
        """E[g(X_t); t < τ] at the recorded times, for a numpy function g of points x with x[i] of shape (n,)."""
        self._needs_records("expectation")
        answer = []
        for x in self.positions:
            alive = ~np.isnan(x[:, 0])
            values = np.zeros(len(x))
            values[alive] = g(x[alive].T)
            answer.append(mean_of(values, level))
        return answer

    def density(
        self, bins: Any, index: int = -1, axis: int | None = None, level: float = LEVEL
    ) -> tuple[Array, Array, Array]:
        """Histogram of the positions at a recorded time.

        Args:
            bins: edges of the bins: one increasing sequence for one coordinate, or one per coordinate.
            index: which recorded time.
            axis: the coordinate whose marginal density is wanted; all of them without.
            level: confidence level of each bin by itself (Wilson).

        Returns:
            (mean density in the bins, lower ends, upper ends of the intervals); paths that have left count as nowhere.
        """
        self._needs_records("density")
        d = self.positions.shape[2]
        edges = [np.asarray(bins, float)] if axis is not None or d == 1 else [np.asarray(b, float) for b in bins]
        columns = [axis or 0] if len(edges) == 1 else list(range(d))
        if len(edges) != len(columns):
            raise ValueError(f"density: {len(edges)} sequences of edges were given for {d} coordinates.")
        x = self.positions[index][:, columns]
        counts = np.histogramdd(x[~np.isnan(x[:, 0])], edges)[0]
        volume = np.ones(counts.shape)
        for i, e in enumerate(edges):
            volume = volume * np.diff(e).reshape([-1 if j == i else 1 for j in range(len(edges))])
        shares = [share_of(int(c), len(self), level) for c in counts.ravel()]
        found = [np.array([getattr(s, name) for s in shares]) for name in ("value", "low", "high")]
        value, low, high = (f.reshape(counts.shape) / volume for f in found)
        return value, low, high

    def star_convexity(self, level: float = LEVEL) -> Estimate:
        """Share of the algorithm's steps that are star-convex with respect to the given minimum.

        A step with batch b from x is when ⟨∇f_b(x), x − x*⟩ ≥ f_b(x) − f_b(x*) (Zhou et al., ICLR 2019, take epochs).
        Steps of one path depend on each other, so the interval is that of a ratio of means over paths.

        Raises:
            ValueError: ``simulate`` was called without ``minimum=``.
        """
        if self.convexity is None:
            raise ValueError("star_convexity: call simulate(..., method='sgd', minimum=x*) with a point x*.")
        kept, asked = self.convexity
        share = kept.sum() / asked.sum()
        deviation = np.std(kept - share * asked, ddof=1) / asked.mean() / np.sqrt(len(asked))
        return normal(float(share), float(deviation), len(asked), level)

    def _needs_exits(self, what: str) -> None:
        if not self.absorbing:
            raise ValueError(f"{what}: nothing absorbs, so paths never leave. Give simulate absorbing= parts.")

    def _needs_records(self, what: str) -> None:
        if not len(self.times):
            raise ValueError(f"{what}: no positions were recorded. Give simulate times=.")
