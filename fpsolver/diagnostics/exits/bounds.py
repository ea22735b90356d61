"""Bounds of a mean exit time by test functions, with hypotheses and suprema measured on the mesh.

Let w be smooth.  If L w ≤ −1 in the domain, w ≥ 0 on the absorbing boundary and n·D∇w ≥ 0 on reflecting walls, then
E τ ≤ w by Itô's formula; with all three inequalities reversed E τ ≥ w.  D may be degenerate.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ufl.algorithms import extract_coefficients

from ..._answer import Answer
from ..._log import logger
from ..._sample import largest, neighbours, smallest
from ...discretisation.generator import Generator
from ...discretisation.solution import Solution, as_points, locate
from ...exits.exit import mean_exit_time
from ...pointwise.lambdify import PointSpace
from ..sampling import Samples, at_points, directions, maxima
from ._certificate import certify
from ._operator import Bound as Bound
from ._operator import Operator, Passes


@dataclass(frozen=True, eq=False)
class ExitBounds(Answer):
    """Lower bound ≤ mean exit time ≤ upper bound, at several starts.

    Attributes:
        lower, upper: best bounds, shape (n,); inf where there is none from above, for the reasons in ``bounds``.
        computed: the answer of :func:`~fpsolver.mean_exit_time`.
        consistent: whether the computed answer lies between them, shape (n,); if not, the mesh is too coarse for it
            or exit is not certain.
        bounds: every bound that was tried.
    """

    lower: np.ndarray
    computed: np.ndarray
    upper: np.ndarray
    consistent: np.ndarray
    bounds: tuple[Bound, ...]

    def __repr__(self) -> str:
        rows = [f"{self.lower[0]:.6g} <= {self.computed[0]:.6g} <= {self.upper[0]:.6g}"]
        for b in self.bounds:
            value = "-" if b.value is None else f"{b.value[0]:.6g}"
            rows.append(f"{b.kind:>6} {value:>12}  {b.name}: {b.why}")
        return "\n".join(rows)


def exit_bounds(gen: Generator, start: Any, *, solution: Solution | None = None) -> ExitBounds:
    """Bounds of the mean exit time at given starts (collective).

    Lower bounds: |x − c|² grows slowly near a centre c; e^{αf} does within the well below the lowest pass (Arrhenius).
    Upper bounds: |x − c|² grows fast everywhere; noise in one direction carries every path out.  Both: the residual of
    a spline near the computed solution.  D may be degenerate.  Suprema are measured on a lattice in every cell, with a
    margin from second differences: the bounds are proofs as far as that lattice resolves the coefficients.

    ``start`` is one point or several (n, d); ``solution`` the mean exit time, if it has been computed already.

    Raises:
        ValueError: nothing absorbs; a start outside the mesh.
        NotConverged: no mean exit time could be computed.
    """
    if not gen.absorbing:
        raise ValueError(
            "exit_bounds: nothing absorbs, so the process never leaves. Give the generator absorbing parts; the domain "
            f"has {', '.join(gen.domain.parts) or 'none'}."
        )
    x = as_points(start, gen.domain.dim, "start")
    locate(gen.domain.mesh, x, "start")
    solution = mean_exit_time(gen) if solution is None else solution
    computed, op = solution.at(x), Operator(gen)
    found = [
        _quadratic_lower(op, x),
        _arrhenius(op, x),
        _quadratic_upper(op, x),
        _noisy_direction(op, x),
        *certify(op, solution.function, x, computed),
    ]
    known: list[tuple[str, Any]] = [(b.kind, b.value) for b in found if b.value is not None]
    lower = np.max([np.zeros(len(x)), *(value for kind, value in known if kind == "lower")], axis=0)
    upper = np.min([np.full(len(x), np.inf), *(value for kind, value in known if kind == "upper")], axis=0)
    slack = 1e-9 * np.abs(computed) + 1e-12 * largest(op.comm, np.abs(solution.function.x.array))
    consistent = (lower <= computed + slack) & (computed <= upper + slack)
    if not consistent.all():
        k = int(np.argmin(consistent))
        logger.warning(
            "exit_bounds: the computed mean exit time %.6g at %s is outside its bounds [%.6g, %.6g]: "
            "the mesh is too coarse, or exit is not certain",
            *(computed[k], x[k].tolist(), lower[k], upper[k]),
        )
    return ExitBounds(lower, computed, upper, consistent, tuple(found))


def _growth(op: Operator, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q = L|x − c|² in the cells, and n·D(x − c) on the walls."""
    q = 2 * np.einsum("cpii->cp", op.D) + 2 * np.einsum("cpi,cpi->cp", op.b, op.x - c)
    return q, op.slope(op.walls.x - c)


def _square(samples: Samples, c: np.ndarray) -> np.ndarray:
    return ((samples.x - c) ** 2).sum(axis=2)


def _quadratic_lower(op: Operator, x: np.ndarray, radii: int = 48) -> Bound:
    """(R² − |x − c|²) / sup_{B_R} q for the exit from a ball that no absorbing facet and no bad wall meets."""
    value = np.zeros(len(x))
    for k, start in enumerate(x):
        for c in (start, 0.5 * (op.low + op.high)):
            q, slope = _growth(op, c)
            top, near = op.cells.upper(q), op.cells.lower(_square(op.cells, c))
            bad = op.walls.lower(_square(op.walls, c))[op.blocked(-slope)]
            nearest = min(smallest(op.comm, op.exits.lower(_square(op.exits, c))), smallest(op.comm, bad))
            R2 = max(nearest, 0.0) * (np.arange(1, radii + 1) / radii) ** 2
            sup = maxima(op.comm, [np.max(top[near <= r], initial=-np.inf) for r in R2])
            room = R2 - ((start - c) ** 2).sum()
            with np.errstate(divide="ignore", invalid="ignore"):
                # |x − c|² that does not grow on average never reaches R²
                value[k] = max(value[k], np.where(room > 0, np.where(sup > 0, room / sup, np.inf), 0.0).max())
    if not value.any():
        why = "no ball around the start avoids the absorbing boundary and bad walls, or the coefficients are infinite"
        return Bound("quadratic", "lower", None, why)
    why = "q = L|x − c|² is at most sup q within R of c, and no absorbing facet is nearer"
    return Bound("quadratic", "lower", value, why)


def _quadratic_upper(op: Operator, x: np.ndarray) -> Bound:
    """(max |y − c|² − |x − c|²) / inf q with the maximum over the absorbing boundary."""
    middle = 0.5 * (op.low + op.high)
    centers = [*x, middle, *(middle - s * op.extent * v for v in _directions(op) for s in (1, 4, 16))]
    value, best, blocked = np.full(len(x), np.inf), -np.inf, False
    for c in centers:
        q, slope = _growth(op, c)
        q0 = smallest(op.comm, op.cells.lower(q))
        if not q0 > 0:
            best = max(best, q0)
        elif op.comm.allreduce(int(op.blocked(slope).sum())):
            blocked = True
        else:
            far = largest(op.comm, op.exits.upper(_square(op.exits, c)))
            value = np.minimum(value, np.maximum(far - ((x - c) ** 2).sum(axis=1), 0.0) / q0)
    if np.isfinite(value).all():
        return Bound("quadratic", "upper", value, "q = L|x − c|² is at least inf q > 0 everywhere")
    why = op.why_blocked("≥") if blocked else f"inf q = {best:.3g} is not positive for any centre tried: drift wins"
    return Bound("quadratic", "upper", None, why)


def _arrhenius(op: Operator, x: np.ndarray) -> Bound:
    """(e^{αℓ} − e^{αf(x)}) / sup (L e^{αf})⁺ over the component of {f < ℓ}, ℓ a lower estimate of the lowest pass."""
    process, mesh, d = op.gen.process, op.gen.domain.mesh, op.dim
    f = process.energy(op.space)
    if f is None:
        return Bound("arrhenius", "lower", None, f"{type(process).__name__} has no loss")
    if extract_coefficients(f):
        why = "the loss is tabulated: its gradient jumps between cells, and e^{αf} is not C¹"
        return Bound("arrhenius", "lower", None, why)
    gradient = [f.dx(i) for i in range(d)]
    table = op.cells.values([f, *gradient, *(g.dx(j) for g in gradient for j in range(d))])
    F, g = table[..., 0], table[..., 1 : d + 1]
    A = op.generate(g, table[..., d + 1 :].reshape(*F.shape, d, d))
    B = np.einsum("cpi,cpij,cpj->cp", g, op.D, g)
    bad = neighbours(mesh, op.wall_facets[op.blocked(-op.slope(op.walls.values(gradient)))])[0][:, 0]
    exits = neighbours(mesh, op.exit_facets)[0][:, 0], op.exits.lower(op.exits.values(f))
    passes = Passes(op.gen.domain, op.cells.lower(F), exits)
    space = PointSpace(d, process.weights(d), process)
    level = at_points(process.energy(space), space)(x)[:, 0]
    constants: dict[str, float] = {}
    value = np.zeros(len(x))
    for k, cell in enumerate(passes.number(x)):
        ell = passes.lowest(cell, -1)[0]
        inside = passes.below(cell, ell)
        if level[k] < ell and not op.comm.allreduce(int(inside[bad].sum())):
            value[k], found = _best_rate(op, F[inside], A[inside], B[inside], inside, float(level[k]), ell)
            constants = constants if k else found
    if not value.any():
        why = f"the start lies above the lowest pass to the exit, or {op.why_blocked('≤')}"
        return Bound("arrhenius", "lower", None, why)
    return Bound("arrhenius", "lower", value, "L e^{αf} is bounded by c in the well below the pass", constants)


def _best_rate(
    op: Operator, F: np.ndarray, A: np.ndarray, B: np.ndarray, inside: np.ndarray, level: float, ell: float
) -> tuple[float, dict[str, float]]:
    below = np.minimum(F - ell, 0.0)
    noise = max(largest(op.comm, np.linalg.eigvalsh(np.nan_to_num(op.D[inside]))[..., -1]), 1e-300)
    lowest, highest = min(1e-2 / max(ell - level, 1e-300), 1e-2 / noise), 2 / noise
    for _ in range(2):
        rates = np.geomspace(lowest, highest, 40)
        grown = [np.max(op.cells.upper(a * np.exp(a * below) * (A + a * B)), initial=-np.inf) for a in rates]
        c = maxima(op.comm, grown)
        with np.errstate(divide="ignore"):
            values = np.where(c > 0, -np.expm1(rates * (level - ell)) / c, np.inf)  # no growth at all: no exit
        j = int(np.argmax(values))
        lowest, highest = rates[max(j - 1, 0)], rates[min(j + 1, len(rates) - 1)]
    return float(values[j]), {"alpha": float(rates[j]), "theta": float(1 - rates[j] * noise), "pass": ell}


def _directions(op: Operator) -> np.ndarray:
    """Unit vectors to try: angles in the plane, axes and diagonals in space; the eigenvectors of the mean diffusion."""
    d = op.dim
    if d == 1:
        return directions(1)
    tried = directions(2)[::45] if d == 2 else np.array([v for v in np.ndindex(3, 3, 3) if v != (1, 1, 1)]) - 1.0
    finite = op.D[np.isfinite(op.D).all(axis=(1, 2, 3))]
    Q = np.linalg.eigh(op.comm.allreduce(finite.sum(axis=(0, 1))))[1].T
    tried = np.concatenate([tried, Q, -Q])
    return tried / np.linalg.norm(tried, axis=1, keepdims=True)


def _noisy_direction(op: Operator, x: np.ndarray) -> Bound:
    """(e^{λM} − e^{λ l·x}) / inf L e^{λ l·x} with M = max l·y over the absorbing boundary."""
    value, noisiest, blocked = np.full(len(x), np.inf), 0.0, False
    for v in _directions(op):
        noise = op.cells.lower(np.einsum("cpij,i,j->cp", op.D, v, v))
        sigma = smallest(op.comm, noise)
        noisiest = max(noisiest, sigma)
        if op.comm.allreduce(int(op.blocked(op.conormal @ v).sum())):
            blocked = blocked or sigma > 0
            continue
        drift, place = op.cells.lower(op.b @ v), op.cells.lower(op.x @ v)
        base, M = smallest(op.comm, place), largest(op.comm, op.exits.upper(op.exits.x @ v))
        G = max(-smallest(op.comm, drift), 0.0)
        rates = np.geomspace(1e-2, 1e2, 81) * (1 / op.extent + (G / sigma if sigma > 0 else G / op.scale))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            growth = np.log(np.maximum(np.outer(noise, rates) + drift[:, None], 0.0) * rates)
            log_inf = -maxima(op.comm, np.max(-(growth + np.outer(place - base, rates)), axis=0, initial=-np.inf))
            gap = np.maximum(M - x @ v, 0.0)[:, None]
            log_w = rates * (M - base) + np.log(-np.expm1(-rates * gap)) - log_inf
            value = np.fmin(value, np.fmin.reduce(np.exp(log_w), axis=1))
    if np.isfinite(value).all():
        why = "L e^{λ l·x} is positive everywhere: noise along l carries every path out"
        return Bound("one noisy direction", "upper", value, why)
    why = "beyond the range of floats"
    if blocked:
        why = op.why_blocked("≥") + ", for each noisy direction"
    elif noisiest <= 1e-10 * op.scale:
        why = "no direction is uniformly noisy: inf l·Dl vanishes for every l tried, so paths may never leave"
    return Bound("one noisy direction", "upper", None, why)
