"""The residual certificate: a smooth function near the computed exit time, and how well it solves L w = −1.

A tensor-product spline W, as finite elements are not C¹, is fitted by least squares to L W = −1, to the boundary data
and, lightly, to the computed solution.  With L W ≤ −(1 − r) and W ≥ a on the absorbing boundary, E τ ≤ (W − a)/(1 − r),
and likewise from below.  On reflecting walls a multiple of |x − c|²/2 gives n·D∇W the right sign.
"""

import numpy as np
from dolfinx import fem
from scipy.interpolate import BSpline, NdBSpline
from scipy.linalg import lstsq, solve
from scipy.sparse import csr_matrix, diags, kron, vstack

from ..._sample import largest
from ._operator import Bound, Operator

_DEGREE = {1: 5, 2: 5, 3: 4}
_KNOTS = {1: 400, 2: 36, 3: 9}
_ROWS = {1: 4, 2: 16, 3: 6}  # equations per unknown
_ROUNDS = 4
_NEAR = 10.0  # weight of the computed solution and of boundary data, relative to its largest value
_WIDEN = 1e-3


def certify(op: Operator, computed: fem.Function, x: np.ndarray, at_start: np.ndarray) -> list[Bound]:
    """A lower and an upper bound from the residual of a spline, which may be a thousandth off ``computed``."""
    splines = op.comm.bcast(_fit(op, op.cells.values(computed)), root=0)
    if not splines:
        why = "coefficients or the computed solution are not finite"
        return [Bound("residual certificate", kind, None, why) for kind in ("lower", "upper")]
    best: list[Bound] = []
    for spline in splines:
        gradient, hessian = _derivatives(spline, op.x, 1), _derivatives(spline, op.x, 2)
        residual = op.generate(gradient, hessian) + 1.0
        size = np.einsum("cpi,cpi->cp", np.abs(op.b), np.abs(gradient))
        size += np.einsum("cpij,cpij->cp", np.abs(op.D), np.abs(hessian))
        rounding = 100 * np.finfo(float).eps * (1 + largest(op.comm, size))
        found = [_bound(op, spline, s * residual, s, rounding, x, at_start) for s in (-1.0, 1.0)]
        best = [max(pair, key=_tightness) for pair in zip(best or found, found, strict=True)]
    return best


def _tightness(b: Bound) -> float:
    return -np.inf if b.value is None else float(b.value[0]) * (1.0 if b.kind == "lower" else -1.0)


def _bound(
    op: Operator, spline: NdBSpline, residual: np.ndarray, sign: float, rounding: float, x: np.ndarray,
    at_start: np.ndarray,
) -> Bound:  # fmt: skip
    """Upper bound (sign 1) from sup(L W + 1), lower bound (sign −1) from sup(−(L W + 1))."""
    name, kind, middle = "residual certificate", ("upper" if sign > 0 else "lower"), 0.5 * (op.low + op.high)
    # the multiple of |x − c|²/2 that makes sign·n·D∇w ≥ 0 on the walls
    wrong = op.walls.upper(-sign * op.slope(_derivatives(spline, op.walls.x, 1)))
    push = op.walls.lower(op.slope(op.walls.x - middle))
    diffusive = np.abs(op.conormal).max(axis=(1, 2), initial=0.0) > 0
    stuck = op.leaks | (diffusive & (wrong > 0) & (push <= 1e-10 * op.scale * op.extent))
    if op.comm.allreduce(int(stuck.sum())):
        return Bound(name, kind, None, op.why_blocked("≥" if sign > 0 else "≤"))
    lift = max(largest(op.comm, np.where(diffusive, wrong, 0.0) / np.where(push > 0, push, 1.0)), 0.0)
    # w = W + sign·lift·|x − c|²/2
    growth = np.einsum("cpii->cp", op.D) + np.einsum("cpi,cpi->cp", op.b, op.x - middle)
    r = largest(op.comm, op.cells.upper(residual + lift * growth)) + rounding
    edge = sign * spline(op.exits.x) + 0.5 * lift * ((op.exits.x - middle) ** 2).sum(axis=2)
    low = np.where(op.accepts, edge, np.inf).min(axis=1, initial=np.inf) - op.exits.margin(edge)
    # the smallest value of sign·w where paths leave
    offset = -largest(op.comm, -low)
    if not np.isfinite(offset) or not np.isfinite(r) or (sign > 0 and r >= 1):
        why = f"the residual of the smoothed solution is {r:.3g}; less than 1 was needed: refine the mesh"
        return Bound(name, kind, None, why)
    w = sign * spline(x) + 0.5 * lift * ((x - middle) ** 2).sum(axis=1) - offset
    value = w / (1 - r) if sign > 0 else -w / (1 + r)
    outside = sign * (at_start - value)
    value = np.where((outside > 0) & (outside < _WIDEN * np.abs(at_start)), at_start, value)
    return Bound(name, kind, np.maximum(value, 0.0), f"a spline near the computed solution has L w + 1 within {r:.2g}")


def _fit(op: Operator, T: np.ndarray) -> list[NdBSpline]:
    """Splines near T on rank 0, none elsewhere or if something is not finite (collective)."""
    d = op.dim
    flat = np.concatenate([op.x.reshape(-1, d), op.b.reshape(-1, d), op.D.reshape(-1, d * d), T.reshape(-1, 1)], axis=1)
    walls = np.concatenate([op.walls.x.reshape(-1, d), op.conormal.reshape(-1, d)], axis=1)
    pieces = op.comm.gather((flat, op.exits.x[op.accepts], walls), root=0)
    if pieces is None:
        return []
    cells, exits, walls = (np.concatenate(p) for p in zip(*pieces, strict=True))
    if not np.isfinite(cells).all() or not len(exits):
        return []
    k, sides = _DEGREE[d], op.high - op.low
    across = np.minimum(_KNOTS[d], len(cells) ** (1 / d) / 4) * sides / sides.max()
    knots = tuple(
        np.concatenate([np.full(k, a), np.linspace(a, b, m + 1), np.full(k, b)])
        for a, b, m in zip(op.low, op.high, np.clip(across, 2, None).astype(int), strict=True)
    )
    shape = tuple(len(t) - k - 1 for t in knots)
    wanted = _ROWS[d] * int(np.prod(shape))
    cells, exits, walls = _thin(cells, wanted), _thin(exits, wanted // 2), _thin(walls, wanted // 4)
    near = _NEAR / max(float(np.abs(cells[:, -1]).max()), 1e-300)
    some = cells[:: _ROWS[d] // 2]
    equation = _operator_rows(knots, k, cells[:, :d], cells[:, d : 2 * d], cells[:, 2 * d : -1].reshape(-1, d, d))
    slope = _operator_rows(knots, k, walls[:, :d], walls[:, d:])
    values = [near * _rows(knots, k, x, np.zeros(d, int)) for x in (some[:, :d], exits)]
    data = np.concatenate([near * some[:, -1], np.zeros(len(exits) + len(walls))])
    fits = _least_squares(equation, -np.ones(len(cells)), vstack([*values, slope]).tocsr(), data, d == 1)
    return [NdBSpline(knots, c.reshape(shape), k) for c in fits]


def _least_squares(A: csr_matrix, b: np.ndarray, rest: csr_matrix, data: np.ndarray, small: bool) -> list[np.ndarray]:
    """Least squares, and unless small reweighted towards the least maximum (Lawson): better at singular derivatives."""
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
    few = len(rows) <= wanted
    return rows if few else rows[np.random.default_rng(0).choice(len(rows), wanted, replace=False)]


def _derivatives(spline: NdBSpline, x: np.ndarray, order: int) -> np.ndarray:
    """All derivatives of an order, shape (..., d) or (..., d, d)."""
    d = x.shape[-1]
    each = [spline(x, nu=np.bincount(axes, minlength=d)) for axes in np.ndindex(*(d,) * order)]
    return np.stack(each, axis=-1).reshape(*x.shape[:-1], *(d,) * order)


def _rows(knots: tuple[np.ndarray, ...], k: int, x: np.ndarray, order: np.ndarray) -> csr_matrix:
    """Matrix (n, unknowns) of the derivatives of all basis functions at points, of given order in each axis."""
    axes = [BSpline(t, np.eye(len(t) - k - 1), k).derivative(m) for t, m in zip(knots, order, strict=True)]
    coefficients = csr_matrix(np.eye(1))
    for a in axes:
        coefficients = kron(coefficients, csr_matrix(a.c[: len(a.t) - a.k - 1]), format="csr")
    shape = len(x), coefficients.shape[0]
    if not len(x):
        return csr_matrix(shape) @ coefficients
    design = NdBSpline.design_matrix(np.ascontiguousarray(x), tuple(a.t for a in axes), [a.k for a in axes])
    return csr_matrix((design.data, design.indices, design.indptr), shape=shape) @ coefficients


def _operator_rows(
    knots: tuple[np.ndarray, ...], k: int, x: np.ndarray, b: np.ndarray, D: np.ndarray | None = None
) -> csr_matrix:
    """Matrix (n, unknowns) of b·∇ + D:∇∇ of all basis functions at points."""
    d = x.shape[1]
    rows = sum(diags(b[:, i]) @ _rows(knots, k, x, np.bincount([i], minlength=d)) for i in range(d))
    for i, j in np.ndindex(d, d):
        if D is None:
            break
        rows += diags(D[:, i, j]) @ _rows(knots, k, x, np.bincount([i, j], minlength=d))
    return rows
