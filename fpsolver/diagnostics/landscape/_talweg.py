"""The lowest gradient on each level of a loss about a minimum: the curve that decides the Łojasiewicz exponent."""

import numpy as np
from scipy.integrate import Radau

from ..._answer import place
from .points import Loss

_LEVELS = 41
_MEMBERS = 6
_SWEEPS = 24
_FLOW_STEPS = 80  # rounding on fine levels may stop a path
_MATCH = 0.05  # a point belongs to a level if the logarithms differ by less
_SLOPE = 0.75  # guess of the exponent, by which gradients are compared within a level: an error of at most 1 %


class Talweg:
    """log (f − f*) and log |∇f| of the flattest points on many levels in the ball about ``centre`` (d,), on one rank.

    From random points and a few paths of the gradient flow, |∇f|² is lowered by Gauss–Newton steps along each level and
    Newton's method back to it; good points are handed on from level to level.
    """

    def __init__(self, loss: Loss, centre: np.ndarray, radius: float, seed: int):
        self.loss, self.centre, self.radius, self.random = loss, centre, radius, np.random.default_rng(seed)
        rounding = float(np.finfo(float).eps)
        x, excess, slope, left = self._shells()
        sphere = len(x) // 61
        largest = abs(self.lowest) + float(np.median(np.abs(excess[:sphere])))
        lowest, highest = 1e4 * rounding * largest, float(np.median(excess[2 * sphere : 3 * sphere]))
        if not highest > 1e3 * lowest:
            raise ValueError(
                f"f − f* is only {highest:.2g} within {radius:.2g} of {place(centre)}, and rounding allows "
                f"{lowest:.2g}: too few decades for an exponent. Take a larger radius."
            )
        self.x: np.ndarray
        self.value: np.ndarray
        self.reached: np.ndarray
        self.levels = np.linspace(np.log(lowest), np.log(highest), _LEVELS)
        good = (excess > 0) & (slope > 0)
        self._start(x[good], np.log(excess[good]), np.log(slope[good]))
        if loss.dim > 1:
            self._flow()
        for _ in range(_SWEEPS if loss.dim > 1 else 2):
            self._sweep()
        # the best point of each level, where its gradient stands above rounding
        at = np.arange(_LEVELS), np.argmin(self.value, axis=1)
        with np.errstate(invalid="ignore"):  # levels that nothing reached
            slope = self.value[at] + _SLOPE * (self.reached[at] - self.levels)
        floor = 30 * left + (0.0 if loss.exact else 1e3 * rounding * largest / loss.step)
        keep = np.isfinite(slope) & (slope > np.log(max(floor, 1e-290)))
        keep &= loss.exact | (np.linalg.norm(self.x[at] - centre, axis=1) > 20 * loss.step)
        self.level, self.slope = self.reached[at][keep], slope[keep]

    def _shells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Random points at 61 geometric radii from the sphere inwards, f − f* and |∇f|, and |∇f| at the minimum."""
        d, centre, radius = self.loss.dim, self.centre, self.radius
        finest = 1e-9 if self.loss.exact else max(1e-9, 20 * self.loss.step / radius)
        v = self.random.standard_normal((61, 128, d)) if d > 1 else np.tile([[-1.0], [1.0]], (61, 1, 1))
        v *= radius * np.geomspace(1.0, min(finest, 0.5), 61)[:, None, None] / np.linalg.norm(v, axis=2, keepdims=True)
        x = np.concatenate([centre[None], (centre + v).reshape(-1, d)])
        f, g = self.loss.first(x)
        slope = np.linalg.norm(g, axis=1)
        bad = ~(np.isfinite(f) & np.isfinite(slope))
        if bad.any():
            raise ValueError(f"the loss or its gradient is not finite at {place(x[np.argmax(bad)])}.")
        self.lowest, left = float(f[0]), float(slope[0])
        x, excess, slope = x[1:], f[1:] - self.lowest, slope[1:]
        typical = float(np.median(slope[: len(x) // 61]))
        if left > 1e-4 * typical:
            raise ValueError(
                f"{place(centre)} is no critical point: |∇f| = {left:.2g} there, and {typical:.2g} at distance "
                f"{radius:.2g}. Take a point of fp.diagnostics.critical_points."
            )
        rounding = 1e3 * np.finfo(float).eps * np.abs(f).max() + left * np.linalg.norm(x - centre, axis=1)
        lower = int(np.argmin(excess + rounding))
        if excess[lower] < -rounding[lower]:
            raise ValueError(
                f"{place(centre)} is no minimum within {radius:.2g}: f is lower by {-excess[lower]:.2g} at "
                f"{place(x[lower])}. Take a minimum, or a smaller radius."
            )
        return x, excess, slope, left

    def _start(self, x: np.ndarray, level: np.ndarray, slope: np.ndarray) -> None:
        """The flattest samples near each level, and a few others."""
        chosen = []
        for target in self.levels:
            near = np.flatnonzero(np.abs(level - target) < 3)
            if len(near) < _MEMBERS:
                near = np.argsort(np.abs(level - target))[:_MEMBERS]
            flattest = near[np.argsort(slope[near] - _SLOPE * level[near])][: _MEMBERS // 2]
            chosen.append(np.concatenate([flattest, self.random.choice(near, _MEMBERS - len(flattest))]))
        self.x = x[np.array(chosen)]
        self.value, self.reached = np.full((2, _LEVELS, _MEMBERS), np.inf)
        self._offer(self.x[:, :, None])

    def _flow(self) -> None:
        """Offer the points at which a few paths of the gradient flow, dx = −∇f/|∇f|² d log f, cross the levels."""
        offers = self.x[:, :, None].copy()
        times = self.levels[-1] - self.levels  # descending

        def speed(t: float, x: np.ndarray) -> np.ndarray:
            f, g = (a[0] for a in self.loss.first(x[None]))
            return -max(float(f) - self.lowest, 0.0) / max(float(g @ g), 1e-290) * g

        def jacobian(t: float, x: np.ndarray) -> np.ndarray:
            f, g, H = (a[0] for a in self.loss.second(x[None]))
            excess, square = max(float(f) - self.lowest, 0.0), max(float(g @ g), 1e-290)
            return -(excess * H + np.outer(g, g) - 2 * excess / square * np.outer(g, H @ g)) / square

        for m in range(2 if self.loss.symbolic else 1):  # point by point, which is slow with PyTorch
            start, atol = self.x[-1, m], 1e-13 * self.radius
            path = Radau(speed, 0.0, start, times[0], jac=jacobian, rtol=1e-3, atol=atol)
            for _ in range(_FLOW_STEPS):
                path.step()
                if path.status == "failed":
                    break
                passed = (times > path.t_old) & (times <= path.t)
                if passed.any():
                    offers[passed, m, 0] = path.dense_output()(times[passed]).T
                if path.status == "finished":
                    break
        self._offer(offers)

    def _sweep(self) -> None:
        """One round of proposals for every member of every level; the worst get the best of the neighbouring levels."""
        p = self._steps()[:, :, None]
        offers = self.x[:, :, None] + np.concatenate([p, 0.25 * p], axis=2)
        rows, worst = np.arange(_LEVELS), np.argmax(self.value, axis=1)
        best = self.x[rows, np.argmin(self.value, axis=1)]
        offers[rows, worst, 0] = best[np.maximum(rows - 1, 0)]
        offers[rows, worst, 1] = best[np.minimum(rows + 1, _LEVELS - 1)]
        self._offer(offers)

    def _steps(self) -> np.ndarray:
        """Gauss–Newton steps p ⊥ ∇f that lower |∇f|² on the level, no longer than half the distance from the centre."""
        d = self.loss.dim
        if d == 1:
            return np.zeros(self.x.shape)
        _, g, H = self.loss.second(self.x.reshape(-1, d))
        scale = np.maximum(np.abs(H).max(axis=(1, 2)), 1e-300)
        H, g = H / scale[:, None, None], g / scale[:, None]
        unit = g / np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-300)
        T = np.linalg.svd(np.eye(d) - unit[:, :, None] * unit[:, None, :])[0][:, :, : d - 1]
        values, Q = np.linalg.eigh(T.transpose(0, 2, 1) @ H @ H @ T)
        slope = (T @ Q).transpose(0, 2, 1) @ (H @ g[:, :, None])
        p = -(T @ Q @ (slope / np.maximum(values, 1e-14)[:, :, None]))[..., 0].reshape(self.x.shape)
        distance, length = (np.linalg.norm(y, axis=2, keepdims=True) for y in (self.x - self.centre, p))
        return p * np.minimum(1.0, 0.5 * distance / np.maximum(length, 1e-300))

    def _offer(self, x: np.ndarray) -> None:
        """Bring proposals (levels, members, n, d) to their levels; a member moves to the best of its own."""
        levels, members, n, d = x.shape
        flat, target = x.reshape(-1, d).copy(), np.repeat(self.levels, members * n)
        who, value, reached = np.arange(len(flat)), np.full(len(flat), np.inf), np.zeros(len(flat))
        for _ in range(10):
            f, g = self.loss.first(flat[who])
            square = np.sum(g * g, axis=1)
            good = np.isfinite(f) & np.isfinite(square) & (f > self.lowest) & (square > 0)
            good &= np.linalg.norm(flat[who] - self.centre, axis=1) <= self.radius
            who, f, g, square = who[good], f[good], g[good], square[good]
            excess = f - self.lowest
            off = np.log(excess) - target[who]
            hit = np.abs(off) < _MATCH
            value[who[hit]] = 0.5 * np.log(square[hit]) - _SLOPE * off[hit]
            reached[who[hit]] = np.log(excess[hit])
            far = ~hit
            who = who[far]
            if not len(who):
                break
            back = np.clip(off[far], -1.5, 1.5) * excess[far] / square[far]
            flat[who] -= back[:, None] * g[far]
        best = np.argmin(value.reshape(levels, members, n), axis=2).ravel() + n * np.arange(levels * members)
        better = value[best].reshape(levels, members) < self.value
        chosen = best.reshape(levels, members)[better]
        self.x[better], self.value[better], self.reached[better] = flat[chosen], value[chosen], reached[chosen]
