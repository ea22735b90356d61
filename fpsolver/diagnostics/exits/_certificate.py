"""The residual certificate: a smooth function near the computed exit time, and how well it solves L w = −1.

Finite elements are not C¹, so that their residual says nothing pointwise.  A tensor-product spline W is fitted by least
squares to L W = −1, to the boundary data and, lightly, to the computed solution; then its residual is measured.  With
L W ≤ −(1 − r) and W ≥ a on the absorbing boundary, E τ ≤ (W − a)/(1 − r), and likewise from below.  On reflecting walls
a multiple of |x − c|²/2 gives n·D∇W the right sign.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from dolfinx import fem
from scipy.interpolate import BSpline
from scipy.linalg import lstsq, solve
from scipy.sparse import csr_matrix, diags, vstack

from ..sampling import supremum
from ._operator import Operator, Verdict

_DEGREE = {1: 5, 2: 5, 3: 4}
_KNOTS = {1: 400, 2: 36, 3: 9}
_ROWS = {1: 4, 2: 16, 3: 6}  # equations per unknown
_ROUNDS = 4
_NEAR = 10.0  # weight of the computed solution and of boundary data, relative to its largest value
_WIDEN = 1e-3


@dataclass(frozen=True)
class Spline:
    """A tensor-product spline on a box: knots per axis, degree, coefficients (n_1 ... n_d,)."""

    knots: list[np.ndarray]
    degree: int
    coefficients: np.ndarray

    def local(self, x: np.ndarray) -> tuple[np.ndarray, Callable[[list[int]], np.ndarray]]:
        """The basis functions that do not vanish at points (n, d).

        Returns:
            Their numbers (n, m), and a function that gives their derivatives (n, m) of given order in each axis.
        """
        n, k = len(x), self.degree
        columns, axes = np.zeros((n, 1), dtype=np.int64), []
        for axis, t in enumerate(self.knots):
            count = len(t) - k - 1
            clipped = np.clip(x[:, axis], t[0], t[-1])
            first = np.clip(np.searchsorted(t, clipped, side="right") - 1, k, count - 1) - k
            here = first[:, None] + np.arange(k + 1)
            columns = (columns[:, :, None] * count + here[:, None, :]).reshape(n, (k + 1) ** (axis + 1))
            basis = BSpline(t, np.eye(count), k)
            tables = (basis, basis.derivative(1), basis.derivative(2))
            axes.append([np.take_along_axis(table(clipped), here, axis=1) for table in tables])

        def product(order: list[int]) -> np.ndarray:
            result = axes[0][order[0]]
            for axis in range(1, len(axes)):
                more = axes[axis][order[axis]]
                result = (result[:, :, None] * more[:, None, :]).reshape(n, (k + 1) ** (axis + 1))
            return result

        return columns, product

    def derivatives(self, x: np.ndarray, chunk: int = 10_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values (n,), gradients (n, d) and Hessians (n, d, d)."""
        d = len(self.knots)
        w, g, H = np.zeros(len(x)), np.zeros((len(x), d)), np.zeros((len(x), d, d))
        for start in range(0, len(x), chunk):
            part = slice(start, start + chunk)
            columns, product = self.local(x[part])
            c = self.coefficients[columns]
            w[part] = (product([0] * d) * c).sum(axis=1)
            for i in range(d):
                g[part, i] = (product(_order(d, i)) * c).sum(axis=1)
                for j in range(i + 1):
                    H[part, i, j] = H[part, j, i] = (product(_order(d, i, j)) * c).sum(axis=1)
        return w, g, H


def _order(d: int, *axes: int) -> list[int]:
    return [axes.count(i) for i in range(d)]


def certify(op: Operator, computed: fem.Function, x: np.ndarray, at_start: np.ndarray) -> list[Verdict]:
    """A lower and an upper bound from the residual of a spline near ``computed`` (collective).

    The interval is widened to contain the computed values where they are outside by less than a thousandth: their
    error is that of the mesh, the spline's another.
    """
    T = op.cells.values([computed])[..., 0]
    splines = op.comm.bcast(_fit(op, T), root=0)
    if not splines:
        why = "coefficients or the computed solution are not finite"
        return [(kind, None, False, why, {}) for kind in ("lower", "upper")]
    verdicts = [_judge(op, spline, x, at_start) for spline in splines]
    return [max(each, key=_quality) for each in zip(*verdicts, strict=True)]


def _quality(verdict: Verdict) -> float:
    kind, value = verdict[:2]
    return -np.inf if value is None else float(value[0] if kind == "lower" else -value[0])


def _judge(op: Operator, spline: Spline, x: np.ndarray, at_start: np.ndarray) -> list[Verdict]:
    d, shape = op.dim, op.x.shape[:2]
    _, gradient, hessian = spline.derivatives(op.x.reshape(-1, d))
    gradient, hessian = gradient.reshape(*shape, d), hessian.reshape(*shape, d, d)
    residual = op.generate(gradient, hessian) + 1.0
    size = np.einsum("cpi,cpi->cp", np.abs(op.b), np.abs(gradient))
    size += np.einsum("cpij,cpij->cp", np.abs(op.D), np.abs(hessian))
    rounding = 100 * np.finfo(float).eps * (1 + supremum(op.comm, size))
    return [_verdict(op, spline, s * residual, s, rounding, x, at_start) for s in (-1.0, 1.0)]


def _verdict(
    op: Operator,
    spline: Spline,
    residual: np.ndarray,
    sign: float,
    rounding: float,
    x: np.ndarray,
    at_start: np.ndarray,
) -> Verdict:
    """Upper bound (sign 1) from sup(L W + 1), lower bound (sign −1) from sup(−(L W + 1))."""
    kind, middle = ("upper" if sign > 0 else "lower"), 0.5 * (op.low + op.high)
    lift = _lift(op, spline, sign, middle)
    if lift is None:
        return kind, None, False, op.why_blocked("≥" if sign > 0 else "≤"), {}
    # w = W + sign·lift·|x − c|²/2
    growth = np.einsum("cpii->cp", op.D) + np.einsum("cpi,cpi->cp", op.b, op.x - middle)
    r = supremum(op.comm, op.cells.upper(residual + lift * growth)) + rounding
    d = op.dim
    edge = spline.derivatives(op.exits.x.reshape(-1, d))[0].reshape(op.exits.x.shape[:2])
    edge = sign * edge + 0.5 * lift * ((op.exits.x - middle) ** 2).sum(axis=2)
    low = np.where(op.accepts, edge, np.inf).min(axis=1, initial=np.inf) - op.exits.margin(edge)
    # the smallest value of sign·w where paths leave
    offset = -supremum(op.comm, -low)
    constants = {"residual": r, "boundary": abs(offset)}
    if not np.isfinite(offset) or not np.isfinite(r) or (sign > 0 and r >= 1):
        why = f"the residual of the smoothed solution is {r:.3g}; less than 1 was needed: refine the mesh"
        return kind, None, False, why, constants
    w = sign * (spline.derivatives(x)[0] + sign * 0.5 * lift * ((x - middle) ** 2).sum(axis=1)) - offset
    value = w / (1 - r) if sign > 0 else -w / (1 + r)
    outside = sign * (at_start - value)
    value = np.where((outside > 0) & (outside < _WIDEN * np.abs(at_start)), at_start, value)
    value = np.maximum(value, 0.0)
    constants["distance"] = float(abs(at_start[0] - spline.derivatives(x[:1])[0][0]))
    return kind, value, True, f"a spline near the computed solution has L w + 1 within {r:.2g}", constants


def _lift(op: Operator, spline: Spline, sign: float, middle: np.ndarray) -> float | None:
    """Multiple of |x − c|²/2 that makes sign·n·D∇w ≥ 0 on the walls; None if there is none (collective)."""
    samples, d = op.wall.samples, op.dim
    gradient = spline.derivatives(samples.x.reshape(-1, d))[1].reshape(samples.x.shape)
    wrong = samples.upper(-sign * np.einsum("fpi,fpi->fp", op.wall.conormal, gradient))
    push = samples.lower(np.einsum("fpi,fpi->fp", op.wall.conormal, samples.x - middle))
    diffusive = np.abs(op.wall.conormal).max(axis=(1, 2), initial=0.0) > 0
    stuck = op.wall.leaks | (diffusive & (wrong > 0) & (push <= 1e-10 * op.scale * op.extent))
    if op.comm.allreduce(int(stuck.sum())):
        return None
    mine = np.where(diffusive, wrong, 0.0) / np.where(push > 0, push, 1.0)
    return max(supremum(op.comm, mine), 0.0)


def _fit(op: Operator, T: np.ndarray) -> list[Spline]:
    """Splines near T on rank 0, none elsewhere or if something is not finite (collective)."""
    d = op.dim
    flat = np.concatenate([op.x.reshape(-1, d), op.b.reshape(-1, d), op.D.reshape(-1, d * d), T.reshape(-1, 1)], axis=1)
    exits = op.exits.x[op.accepts]
    walls = np.concatenate([op.wall.samples.x.reshape(-1, d), op.wall.conormal.reshape(-1, d)], axis=1)
    pieces = op.comm.gather((flat, exits, walls), root=0)
    if pieces is None:
        return []
    cells, exits, walls = (np.concatenate([p[k] for p in pieces]) for k in range(3))
    if not np.isfinite(cells).all() or not len(exits):
        return []
    k = _DEGREE[d]
    sides = op.high - op.low
    across = (len(cells) ** (1 / d)) / 4
    pieces_per_axis = np.clip(np.minimum(_KNOTS[d], across) * sides / sides.max(), 2, None).astype(int)
    knots = [
        np.concatenate([np.full(k, a), np.linspace(a, b, m + 1), np.full(k, b)])
        for a, b, m in zip(op.low, op.high, pieces_per_axis, strict=True)
    ]
    unknowns = int(np.prod([len(t) - k - 1 for t in knots]))
    spline, wanted = Spline(knots, k, np.zeros(unknowns)), _ROWS[d] * unknowns
    cells, exits, walls = _thin(cells, wanted), _thin(exits, wanted // 2), _thin(walls, wanted // 4)
    scale = max(float(np.abs(cells[:, -1]).max()), 1e-300)
    equation = _rows(spline, cells[:, :d], cells[:, d : 2 * d], cells[:, 2 * d : -1].reshape(-1, d, d))
    some = cells[:: _ROWS[d] // 2]
    edge = _NEAR / scale * _rows(spline, exits)
    slope = _rows(spline, walls[:, :d], walls[:, d:], np.zeros((len(walls), d, d)))
    rest = vstack([_NEAR / scale * _rows(spline, some[:, :d]), edge, slope]).tocsr()
    data = np.concatenate([_NEAR / scale * some[:, -1], np.zeros(len(exits) + len(walls))])
    fits = _least_squares(equation, -np.ones(len(cells)), rest, data, d == 1)
    return [replace(spline, coefficients=c) for c in fits]


def _least_squares(A: csr_matrix, b: np.ndarray, rest: csr_matrix, data: np.ndarray, small: bool) -> list[np.ndarray]:
    """Least squares, by orthogonal factors where small; else also reweighted towards the least maximum (Lawson).

    The first is better where the solution is large and smooth, the last where its derivatives are singular.
    """
    if small:
        both = vstack([A, rest]).toarray()
        return [lstsq(both, np.concatenate([b, data]), lapack_driver="gelsy", check_finite=False)[0]]
    weight, fixed, load, found = np.ones(A.shape[0]), rest.T @ rest, rest.T @ data, []
    for _ in range(_ROUNDS):
        normal = (A.T @ diags(weight) @ A + fixed).toarray()
        normal.flat[:: len(normal) + 1] += 1e-14 * np.trace(normal)  # functions that hardly meet the domain
        found.append(solve(normal, A.T @ (weight * b) + load, assume_a="pos", check_finite=False))
        error = np.abs(A @ found[-1] - b)
        weight = np.minimum(weight * (0.1 + error / max(error.mean(), 1e-300)), 1e4)
    return [found[0], found[-1]]


def _thin(rows: np.ndarray, wanted: int) -> np.ndarray:
    if len(rows) <= wanted:
        return rows
    return rows[np.random.default_rng(0).choice(len(rows), wanted, replace=False)]


def _rows(spline: Spline, x: np.ndarray, b: np.ndarray | None = None, D: np.ndarray | None = None) -> csr_matrix:
    """Matrix (n, unknowns) of the values, or of b·∇ + D:∇∇, of all basis functions at points."""
    d, (columns, product) = x.shape[1], spline.local(x)
    if b is None or D is None:
        values = product([0] * d)
    else:
        values = sum(b[:, i : i + 1] * product(_order(d, i)) for i in range(d))
        values = values + sum(D[:, i, j : j + 1] * product(_order(d, i, j)) for i in range(d) for j in range(d))
    pointers = np.arange(len(x) + 1) * columns.shape[1]
    return csr_matrix((values.ravel(), columns.ravel(), pointers), shape=(len(x), len(spline.coefficients)))
