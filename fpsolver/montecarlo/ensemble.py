"""Answers of Monte Carlo: what is estimated from the paths, as numbers with intervals."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from .._answer import Answer, place
from .._arguments import check_choice

Array = np.ndarray[Any, Any]
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


def mean_of(samples: Any, level: float = LEVEL, note: str = "") -> Estimate:
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


def _tail_mean(exits: Array, horizon: float, level: float) -> Estimate:
    """Mean of times of which those beyond ``horizon`` are unknown (not a number), if their tail is exponential.

    The mean of min(τ, horizon) plus P(τ > horizon)/r with the rate r of exits in the second half of the time; the
    interval is that of the delta method, the rate's uncertainty included.
    """
    alive, stopped = np.isnan(exits), np.where(np.isnan(exits), horizon, exits)
    events, risk = ((stopped > horizon / 2) & ~alive).astype(float), np.maximum(stopped - horizon / 2, 0.0)
    if not events.any():
        raise ValueError(f"no path left between {horizon / 2:g} and {horizon:g}: the rate of exits is unknown.")
    rate, left = events.mean() / risk.mean(), alive.mean()
    # value = E stopped + E alive · E risk / E events: linearised in each path's share
    share = stopped + alive / rate + left * (risk - events / rate) / events.mean()
    spread, note = mean_of(share, level), f"exponential tail assumed for {left:.1%} of the paths"
    value = float(stopped.mean() + left / rate)
    return Estimate(value, value - spread.error, value + spread.error, level, len(exits), note)


@dataclass(frozen=True)
class Ensemble(Answer):
    """Paths that ``simulate`` has followed; the same on all ranks.

    Every estimate comes with its confidence interval (95 % unless ``level`` says otherwise), which contains the change
    when the step was last divided by four, where ``simulate`` has chosen it.

    Attributes:
        method: "sde" or "sgd".
        exit_times: when each path left, shape (paths,), not a number for those that did not.
        exit_parts: names of the parts through which they left, empty for those that did not, shape (paths,).
        exit_points: where, shape (paths, d); for those that diverged, where they were last.
        times: recorded times; for "sgd" those of whole steps.
        positions: shape (times, paths, d), not a number for paths that have left or diverged.
        diverged: when a path was no longer finite, shape (paths,), not a number for all others.
        horizon: time at which paths that had not left were stopped.
        time_per_step: time of one step of the algorithm, None for a process without one.
        stats: steps of all paths together and in time, the longest step, seconds, backend; how many paths diverged;
            for "sgd" how many leapt through half the domain before a wall mirrored them.
        coarse: the paths with steps four times as long, where ``simulate`` has chosen the step.
        settled: whether the last division of the step changed no more than sampling explains; None where the step was
            given.
    """

    method: str
    exit_times: Array
    exit_parts: Array
    exit_points: Array
    times: Array
    positions: Array
    diverged: Array
    horizon: float
    absorbing: tuple[str, ...]
    time_per_step: float | None
    stats: Mapping[str, Any]
    coarse: "Ensemble | None" = None
    settled: bool | None = None

    def __len__(self) -> int:
        return len(self.exit_times)

    def __repr__(self) -> str:
        left = int(np.isfinite(self.exit_times).sum())
        shares = ", ".join(f"{part} {(self.exit_parts == part).mean():.3g}" for part in self.absorbing)
        exits = f": {left} have left ({shares})" if self.absorbing else ""
        when = f" until t = {self.horizon:g}" if np.isfinite(self.horizon) else ""
        lines = [f"  WARNING: {warning}" for warning in self.warnings]
        return "\n".join([f"{len(self)} paths ({self.method}){when}{exits}", *lines])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with these paths, in sentences."""
        found, n = [], len(self)
        if lost := self.stats["diverged"]:
            first, what = int(np.nanargmin(self.diverged)), "learning rate" if self.method == "sgd" else "step"
            found.append(
                f"{lost} of {n} paths diverged, the first at time {self.diverged[first]:.4g} from "
                f"{place(self.exit_points[first], 4)}; lower the {what}"
            )
        if (leapt := self.stats["leapt"]) > 0.01 * n:
            found.append(
                f"{leapt} of {n} paths leapt through more than half the domain and were mirrored at a wall, without "
                "which they may diverge. Lower the learning rate, enlarge the domain, or let the wall absorb"
            )
        if self.settled is False:
            found.append(
                f"the estimates still changed when the step was divided by four to {self.stats['step']:.3g}; their "
                "intervals are unbounded on that side. Give a smaller step="
            )
        return tuple(found)

    def _with_step(self, ask: Callable[["Ensemble"], Estimate], within: tuple[float, float] | None = None) -> Estimate:
        """An estimate whose interval contains the difference from that with longer steps."""
        own = ask(self)
        if self.coarse is None:
            return own
        change = own.value - ask(self.coarse).value
        own = own.widened(abs(change))
        if self.settled is False:
            own = replace(own, **{"high" if change > 0 else "low": np.copysign(np.inf, change)})
        return own if within is None else replace(own, low=max(own.low, within[0]), high=min(own.high, within[1]))

    def mean_exit_time(self, tail: str = "refuse", level: float = LEVEL) -> Estimate:
        """Mean of the exit time.

        ``tail`` says what to do when some paths had not left at the horizon: "refuse", "exponential" (go on with the
        rate of exits in the second half of the time, and say so), or "bound" (the mean of min(τ, horizon), a lower
        bound).

        Raises:
            ValueError: nothing absorbs, or paths were stopped and ``tail`` does not bear it.
        """
        self._needs_exits("mean_exit_time")
        check_choice("mean_exit_time: tail", tail, ("refuse", "exponential", "bound"))
        lost = int(np.isfinite(self.diverged).sum())
        stopped = int(np.isnan(self.exit_times).sum()) - lost
        if tail == "exponential" and stopped and not lost:
            return self._with_step(lambda e: _tail_mean(e.exit_times, e.horizon, level))
        if tail != "bound" and (lost or stopped):
            raise ValueError(
                f"mean_exit_time: {stopped} of {len(self)} paths had not left at time {self.horizon:g} and {lost} "
                "diverged, so their mean is unknown. Give simulate a larger horizon=, lower the learning rate or the "
                "step, or take tail='bound' (a lower bound)."
            )
        note = f"lower bound: {(stopped + lost) / len(self):.1%} of the paths were stopped" if stopped + lost else ""
        return self._with_step(lambda e: mean_of(e.followed(), level, note))

    def followed(self) -> Array:
        """How long each path was followed: until it left, diverged or was stopped."""
        ends = np.where(np.isnan(self.diverged), self.horizon, self.diverged)
        return np.where(np.isnan(self.exit_times), ends, self.exit_times)

    def exit_probability(self, part: str, level: float = LEVEL) -> Estimate:
        """Probability to leave through a part, before the horizon if there is one (Wilson's interval)."""
        self._needs_exits("exit_probability")
        check_choice("exit_probability: part", part, self.absorbing)
        return self._with_step(lambda e: share_of(int((e.exit_parts == part).sum()), len(e), level), (0.0, 1.0))

    def survival(self, times: Any, level: float = LEVEL) -> list[Estimate]:
        """P(τ > t) at times up to the horizon (Wilson's intervals)."""
        self._needs_exits("survival")
        t = np.atleast_1d(np.asarray(times, dtype=float))
        if (t > self.horizon).any():
            raise ValueError(f"survival: paths were stopped at {self.horizon:g}; {t.max():g} is later.")

        def ask(paths: Ensemble, time: float) -> Estimate:
            return share_of(len(paths) - int((paths.exit_times <= time).sum()), len(paths), level)

        return [self._with_step(lambda e, s=s: ask(e, s), (0.0, 1.0)) for s in t]  # type: ignore[misc]

    def expectation(self, g: Callable[[Array], Any], level: float = LEVEL) -> list[Estimate]:
        """E[g(X_t); t < τ] at the recorded times, for a numpy function g of points x with x[i] of shape (n,).

        Paths that have diverged count as zero, as those that have left; a note says how many they are.
        """
        if not len(self.times):
            raise ValueError("expectation: no positions were recorded. Give simulate times=.")

        def ask(paths: Ensemble, index: int) -> Estimate:
            x = paths.positions[index]
            alive, values = ~np.isnan(x[:, 0]), np.zeros(len(x))
            values[alive] = g(x[alive].T)
            lost = int((paths.diverged <= paths.times[index]).sum())
            return mean_of(values, level, f"{lost} of {len(x)} paths diverged before" if lost else "")

        return [self._with_step(lambda e, i=i: ask(e, i)) for i in range(len(self.times))]  # type: ignore[misc]

    def _needs_exits(self, what: str) -> None:
        if not self.absorbing:
            raise ValueError(f"{what}: nothing absorbs, so paths never leave. Give simulate absorbing= parts.")


def agrees(a: Ensemble, b: Ensemble) -> bool:
    """Whether exits and moments of two independent ensembles differ by no more than chance does once in 300 times."""
    pairs = list(zip(_characteristics(a), _characteristics(b), strict=True))
    reach = float(stats.norm.isf(0.0015 / len(pairs)))
    for x, y in pairs:
        noise = np.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y)) if len(x) > 1 else np.inf
        if not abs(x.mean() - y.mean()) <= reach * noise:
            return False
    return True


def _characteristics(paths: Ensemble) -> Iterator[Array]:
    """Numbers of each path whose means are compared."""
    yield np.isfinite(paths.diverged).astype(float)
    if paths.absorbing:
        yield paths.followed()
        yield from ((paths.exit_parts == part).astype(float) for part in paths.absorbing)
    for x in paths.positions:
        for c in np.nan_to_num(x).T:
            yield c
            yield c * c
