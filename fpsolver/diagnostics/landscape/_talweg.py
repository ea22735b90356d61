"""The lowest gradient on each level of a loss about a minimum: the curve that decides the Łojasiewicz exponent."""

import numpy as np
from scipy.integrate import Radau

from ..._answer import place
from .points import Loss

_LEVELS = 41
_MEMBERS = 6
_SWEEPS = 24
_FLOW_COST = 600  # evaluations; rounding on fine levels may stop a path
_MATCH = 0.05  # a point belongs to a level if the logarithms differ by less
_SLOPE = 0.75  # guess of the exponent, by which gradients are compared within a level: an error of at most 1 %


class Talweg:
    """A search of the ball about ``centre`` (d,), on one rank.

    Random points in shells start it, and a few paths of the gradient flow, which are drawn to slow directions.  On a
    level, |∇f|² is lowered by Gauss–Newton steps along it and by random ones of all sizes, each followed by Newton's
    method back to the level; good points are handed on from level to level.

    Attributes:
        level, slope: log (f − f*) and log |∇f| of the flattest points found on many levels, from the finest upwards.
        distance: theirs from the centre.
        lowest: f*.
        evaluations: of f and ∇f.

    Raises:
        ValueError: values that are not finite, no critical point, no minimum, or less than three decades between
            rounding and the largest level.
    """

    def __init__(self, loss: Loss, centre: np.ndarray, radius: float, seed: int):
        self.loss, self.centre, self.radius, self.random = loss, centre, radius, np.random.default_rng(seed)
        self.evaluations = 0
        f, g = loss.first(centre[None])
        self.lowest, self.left = float(f[0]), float(np.linalg.norm(g[0]))
        if not np.isfinite([self.lowest, self.left]).all():
            raise ValueError(f"the loss is not finite at the point {place(centre)}.")
        x, shell = self._shells()
        excess, slope = self._checked(x, shell)
        largest = abs(self.lowest) + float(np.median(np.abs(excess[shell == 0])))
        lowest = 1e4 * np.finfo(float).eps * largest
        highest = float(np.median(excess[shell == 2]))
        if not highest > 1e3 * lowest:
            raise ValueError(
                f"f − f* is only {highest:.2g} within {radius:.2g} of {place(centre)}, and rounding allows "
                f"{lowest:.2g}: too few decades for an exponent. Take a larger radius."
            )
        self.levels = np.linspace(np.log(lowest), np.log(highest), _LEVELS)
        self.floor = 30 * self.left
        if not loss.exact:
            self.floor += 1e3 * np.finfo(float).eps * largest / loss.step
        good = (excess > 0) & (slope > 0)
        self._start(x[good], np.log(excess[good]), np.log(slope[good]))
        if loss.dim > 1:
            self._flow()
        for _ in range(_SWEEPS if loss.dim > 1 else 2):
            self._sweep()
        self._finish()

    def _shells(self) -> tuple[np.ndarray, np.ndarray]:
        """Random points at geometric radii, shape (n, d), and their shells; the first is the sphere itself."""
        d = self.loss.dim
        finest = 1e-9 if self.loss.exact else max(1e-9, 20 * self.loss.step / self.radius)
        radii = self.radius * np.geomspace(1.0, min(finest, 0.5), 61)
        v = self.random.standard_normal((61, 128, d)) if d > 1 else np.tile([[-1.0], [1.0]], (61, 1, 1))
        v /= np.linalg.norm(v, axis=2, keepdims=True)
        x = self.centre + radii[:, None, None] * v
        return x.reshape(-1, d), np.repeat(np.arange(61), v.shape[1])

    def _checked(self, x: np.ndarray, shell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f − f* and |∇f|, if they are those of a minimum."""
        f, g = self._first(x)
        slope = np.linalg.norm(g, axis=1)
        bad = ~(np.isfinite(f) & np.isfinite(slope))
        if bad.any():
            raise ValueError(f"the loss or its gradient is not finite at {place(x[np.argmax(bad)])}.")
        typical = float(np.median(slope[shell == 0]))
        if self.left > 1e-4 * typical:
            raise ValueError(
                f"{place(self.centre)} is no critical point: |∇f| = {self.left:.2g} there, and {typical:.2g} at "
                f"distance {self.radius:.2g}. Take a point of fp.diagnostics.critical_points."
            )
        excess = f - self.lowest
        rounding = 1e3 * np.finfo(float).eps * np.abs(f).max() + self.left * np.linalg.norm(x - self.centre, axis=1)
        lower = int(np.argmin(excess + rounding))
        if excess[lower] < -rounding[lower]:
            raise ValueError(
                f"{place(self.centre)} is no minimum within {self.radius:.2g}: f is lower by {-excess[lower]:.2g} at "
                f"{place(x[lower])}. Take a minimum, or a smaller radius."
            )
        return excess, slope

    def _first(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.evaluations += len(x)
        return self.loss.first(x)

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
        for m in range(2 if self.loss.symbolic else 1):  # point by point, which is slow with PyTorch
            start, tolerance = self.x[-1, m], {"rtol": 1e-3, "atol": 1e-13 * self.radius}
            path = Radau(self._speed, 0.0, start, times[0], jac=self._flow_jacobian, **tolerance)
            budget = self.evaluations + _FLOW_COST
            while path.status == "running" and self.evaluations < budget:
                path.step()
                if path.status == "failed":
                    break
                passed = (times > path.t_old) & (times <= path.t)
                if passed.any():
                    offers[passed, m, 0] = path.dense_output()(times[passed]).T
        self._offer(offers)

    def _speed(self, t: float, x: np.ndarray) -> np.ndarray:
        """Of the gradient flow in the time −log (f − f*)."""
        f, g = self._first(x[None])
        return -max(float(f[0]) - self.lowest, 0.0) / max(float(g[0] @ g[0]), 1e-290) * g[0]

    def _flow_jacobian(self, t: float, x: np.ndarray) -> np.ndarray:
        self.evaluations += 1
        f, g, H = (a[0] for a in self.loss.second(x[None]))
        excess, square = max(float(f) - self.lowest, 0.0), max(float(g @ g), 1e-290)
        return -(excess * H + np.outer(g, g) - 2 * excess / square * np.outer(g, H @ g)) / square

    def _sweep(self) -> None:
        """One round of proposals for every member of every level; the worst get the best of the neighbouring levels."""
        distance = np.linalg.norm(self.x - self.centre, axis=2)[..., None, None]
        size = 10.0 ** -self.random.uniform(0, 4, (_LEVELS, _MEMBERS, 2, 1))
        jumps = size * distance * self.random.standard_normal((_LEVELS, _MEMBERS, 2, self.loss.dim))
        p = self._steps(distance[..., 0])[:, :, None]
        offers = self.x[:, :, None] + np.concatenate([jumps, p, 0.25 * p], axis=2)
        rows, worst = np.arange(_LEVELS), np.argmax(self.value, axis=1)
        best = self.x[rows, np.argmin(self.value, axis=1)]
        offers[rows, worst, 0] = best[np.maximum(rows - 1, 0)]
        offers[rows, worst, 1] = best[np.minimum(rows + 1, _LEVELS - 1)]
        self._offer(offers)

    def _steps(self, distance: np.ndarray) -> np.ndarray:
        """Gauss–Newton steps p ⊥ ∇f that lower |∇f|² on the level, no longer than half the distance from the centre."""
        d = self.loss.dim
        if d == 1:
            return np.zeros(self.x.shape)
        x = self.x.reshape(-1, d)
        self.evaluations += len(x)
        _, g, H = self.loss.second(x)
        scale = np.maximum(np.abs(H).max(axis=(1, 2)), 1e-300)
        H, g = H / scale[:, None, None], g / scale[:, None]
        unit = g / np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-300)
        T = np.linalg.svd(np.eye(d) - unit[:, :, None] * unit[:, None, :])[0][:, :, : d - 1]
        values, Q = np.linalg.eigh(T.transpose(0, 2, 1) @ H @ H @ T)
        slope = (T @ Q).transpose(0, 2, 1) @ (H @ g[:, :, None])
        p = -(T @ Q @ (slope / np.maximum(values, 1e-14)[:, :, None]))[..., 0].reshape(self.x.shape)
        length = np.maximum(np.linalg.norm(p, axis=2, keepdims=True), 1e-300)
        return p * np.minimum(1.0, 0.5 * distance / length)

    def _offer(self, x: np.ndarray) -> None:
        """Bring proposals (levels, members, n, d) to their levels; a member moves to the best of its own."""
        levels, members, n, d = x.shape
        flat, target = x.reshape(-1, d).copy(), np.repeat(self.levels, members * n)
        who, value, reached = np.arange(len(flat)), np.full(len(flat), np.inf), np.zeros(len(flat))
        for _ in range(10):
            f, g = self._first(flat[who])
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

    def _finish(self) -> None:
        """Keep the best point of each level, where its gradient stands above rounding."""
        at = np.arange(_LEVELS), np.argmin(self.value, axis=1)
        with np.errstate(invalid="ignore"):  # levels that nothing reached
            slope = self.value[at] + _SLOPE * (self.reached[at] - self.levels)
        distance = np.linalg.norm(self.x[at] - self.centre, axis=1)
        keep = np.isfinite(slope) & (slope > np.log(max(self.floor, 1e-290)))
        if not self.loss.exact:
            keep &= distance > 20 * self.loss.step
        self.level, self.slope, self.distance = self.reached[at][keep], slope[keep], distance[keep]
