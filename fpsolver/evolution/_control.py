"""When a Krylov space is large enough: error estimates at the times that matter."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._log import progress
from ._krylov import IncrementSpace

FLOOR = 1e-10  # times the largest norm so far: errors are relative to v(t) until it is smaller
ROUNDING = 1e-12  # times ‖v‖: largest error of a step that more dimensions did not cure


@dataclass
class Control:
    """Grows one space until its errors are below ``allowed``."""

    space: IncrementSpace
    run: Any  #: with the time that the space begins at, the largest norm so far, integrals until then and their scales
    allowed: float  #: relative error that may be left

    def __post_init__(self) -> None:
        self._checks = [0, 0, 0]  # the last dimensions at which errors were looked at

    def build(self, outputs: list[float], stop: float) -> float:
        """Extend until errors are small, rounding, or the space full; the time up to which it can be used."""
        watched = sorted({*outputs[:1], *outputs[len(outputs) // 2 :][:1], stop})
        total = self.space.H.shape[1]
        for m in progress(range(1, total + 1), f"evolution to t = {stop:.4g}, solve", total):
            if self.space.exhausted:
                break
            self.space.extend()
            if m >= 4 and m - self._checks[-1] >= max(2, m // 8):
                self._checks = [*self._checks[1:], m]
                if self._checks[0] and all(self.truncation(t) <= self.allowed / 2 for t in watched):
                    break
        return stop if all(self.error(t) <= self.allowed for t in watched) else self._reached(outputs, stop)

    def _reached(self, outputs: list[float], stop: float) -> float:
        """The latest time before ``stop`` with a small error that leaves no bad output behind; else the beginning."""
        candidates = {*outputs, *(self.run.t + (stop - self.run.t) / 2.0**k for k in range(1, 12))}
        for t in sorted(candidates, reverse=True):
            if all(self.error(s) <= self.allowed for s in (t, *(s for s in outputs[:1] if s < t))):
                return t
        return self.run.t

    def error(self, t: float) -> float:
        """Estimated error of v(t), rounding included; the same on all ranks (collective)."""
        scale = self.space.norm(t - self.run.t)
        rounding = ROUNDING * self.space.norm0 / max(scale, FLOOR * self.run.largest)
        return self.truncation(t) + self.space.comm.bcast(rounding)

    def truncation(self, t: float) -> float:
        """Estimated error of v(t) and of the integrals without rounding; the same on all ranks (collective).

        From the last three checks: the difference between two dimensions bounds the larger one's error while
        convergence is at least geometric with ratio 1/2; where it is slower (smooth data under transport) the geometric
        tail is added.
        """
        if self.space.exhausted:
            return 0.0
        new, old = self._difference(t, *self._checks[:0:-1]), self._difference(t, *self._checks[1::-1])
        ratio = new / old if 0 < old < np.inf else 0.0
        estimate = new * min(max(1.0, ratio / max(1 - ratio, 1e-3)), 10.0) if np.isfinite(new) else np.inf
        return float(self.space.comm.bcast(estimate))  # sums may round differently where memory is aligned differently

    def _difference(self, t: float, m: int, k: int) -> float:
        s = t - self.run.t
        norm, integrals = self.space.difference(s, m, k)
        lost = ROUNDING / self.allowed * self.space.norm0  # more dimensions would not make v(t) relatively exact
        error = norm / max(self.space.norm(s), FLOOR * self.run.largest, lost)
        if integrals.size:
            total = abs(self.run.integrals + self.space.integrals(s))
            error = max(error, *(integrals / np.maximum(total, self.run.scales)))
        return float(error)
