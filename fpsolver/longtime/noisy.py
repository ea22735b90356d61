"""Noisy SGD: what an answer becomes as isotropic noise δ is taken away, and how fast.

``fp.Noisy(process, delta)`` adds δI to D, visibly, and :func:`vanishing_noise_limit` follows any number along a
sequence of δ.  By duality ∫φ(ρ_δ − ρ) = δ ∫₀ᵗ∫ Δu(t − s) ρ_δ(s): expectations of smooth φ are of order one in δ where
the backward solution keeps bounded second derivatives; by coupling, W₂(ρ_δ, ρ)² = O(δ).  Exit times need not converge
at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ufl
from dolfinx import fem
from scipy.optimize import brentq
from scipy.stats import wasserstein_distance

from .._answer import Answer, doubt, with_bar
from .._log import logger
from .._sample import at_quadrature
from ..discretisation.generator import Generator
from ..evolution.initial import Dirac
from ..models.fields import is_number

HIGHEST = 8.0  # orders above are not told apart
NO_LIMIT = 0.05  # an order below: the differences do not decay, not even like a small power
ROUNDING = 1e-10  # times the largest value: changes that are none
NEGATIVE = 1e-2  # mass of a density's negative part that is cut off
SUPPORT = 4000  # points of a plan in more than one dimension: a larger one takes minutes


@dataclass(frozen=True)
class VanishingNoiseLimit(Answer):
    """A quantity along a sequence of δ, and its limit.

    Attributes:
        deltas: δ, decreasing, shape (n,).
        values: shape (n,), or (n, m) for m numbers at once.
        limit: Richardson's extrapolation to δ = 0, assuming powers of δ^predicted; ±inf where there is no limit.
        error: the last change of the extrapolation, inf without a limit.
        order: observed, from the last three values (from the last two where ``reference`` was given): exponent p in
            value − limit ≈ C δ^p; at most zero, up to rounding, where the values run away.  NaN if they do not change.
        predicted: the order that was expected.
    """

    deltas: np.ndarray
    values: np.ndarray
    limit: Any
    error: Any
    order: Any
    predicted: float

    @property
    def exists(self) -> bool:
        """Whether the values have a finite limit."""
        return bool(np.isfinite(self.limit).all())

    def __repr__(self) -> str:
        if not self.exists:
            return f"no limit as δ -> 0: order {self.order} along δ = {self.deltas}"
        pairs = np.column_stack([np.ravel(self.limit), np.ravel(self.error)])
        limits = ", ".join(with_bar(v, e) + doubt(v, e) for v, e in pairs)
        return f"{limits} as δ -> 0\n  order {self.order}, {self.predicted:g} predicted"


def vanishing_noise_limit(
    gen: Generator,
    quantity: Callable[[Generator], Any],
    deltas: Sequence[float],
    *,
    predicted: float = 1.0,
    reference: Any = None,
) -> VanishingNoiseLimit:
    """Follow ``quantity`` along decreasing δ, with ``gen.replace(delta=δ)``, and extrapolate it to 0 (collective).

    Args:
        gen: generator of a :class:`~fpsolver.Noisy` process.
        quantity: maps a generator to a number or an array of m numbers, the same on all ranks.
        deltas: at least three decreasing positive numbers.
        predicted: order expected: 1 for smooth observables, 1/2 for W₂ and what is only Lipschitz.
        reference: the value at δ = 0 where it is known; the order is then that of the distance to it.

    Raises:
        ValueError: the process is not noisy; unsuitable ``deltas``; ``quantity`` does not give finite numbers.
    """
    if "delta" not in gen.process.numbers():
        raise ValueError(
            f"vanishing_noise_limit: {type(gen.process).__name__} has no parameter delta; give the generator "
            "fp.Noisy(process, delta)."
        )
    d = np.asarray(deltas, float)
    if d.ndim != 1 or len(d) < 3 or not np.isfinite(d).all() or not (d > 0).all() or not (np.diff(d) < 0).all():
        raise ValueError(
            f"vanishing_noise_limit: deltas is {deltas!r}; three or more decreasing positive numbers were expected."
        )
    if not is_number(predicted) or not 0 < predicted <= HIGHEST:
        raise ValueError(f"vanishing_noise_limit: predicted is {predicted!r}; a positive order was expected.")
    rows = []
    for delta in d:
        with gen.replace(delta=float(delta)) as noisy:
            rows.append(np.asarray(quantity(noisy), float))
        logger.info("noisy SGD with delta = %g: %s", delta, rows[-1])
        if not np.isfinite(rows[-1]).all() or rows[-1].ndim > 1 or rows[-1].shape != rows[0].shape:
            at = f"{rows[-1]} at delta = {delta:g}"
            raise ValueError(f"vanishing_noise_limit: the quantity is {at}; finite numbers were expected.")
    values = np.array(rows)
    columns = values.reshape(len(d), -1)
    known = [None] * columns.shape[1] if reference is None else np.ravel(reference).astype(float)
    if len(known) != columns.shape[1]:
        raise ValueError(
            f"vanishing_noise_limit: the reference has {len(known)} numbers, the quantity {columns.shape[1]}."
        )
    found = np.array([_extrapolate(d, column, predicted, r) for column, r in zip(columns.T, known, strict=True)])
    shape = values.shape[1:]
    limit, error, order = (row.reshape(shape) if shape else float(row[0]) for row in found.T)
    return VanishingNoiseLimit(d, values, limit, error, order, predicted)


def _extrapolate(d: np.ndarray, values: np.ndarray, predicted: float, reference: float | None) -> tuple[float, ...]:
    """Limit, error and order of one number."""
    floor = ROUNDING * np.abs(values).max()
    order = _order(d, values, floor) if reference is None else _slope(d, values - reference, floor)
    if order < NO_LIMIT:
        return float(np.sign(values[-1] - values[-2]) * np.inf), np.inf, order
    z, row = d**predicted, values.copy()
    best, error = row[-1], abs(row[-1] - row[-2])
    for k in range(1, len(d)):  # Neville: the last entry is the polynomial through the last k + 1 values, at 0
        row = (z[:-k] * row[1:] - z[k:] * row[:-1]) / (z[:-k] - z[k:])
        error, best = abs(row[-1] - best), row[-1]
    return best, error, order


def _slope(d: np.ndarray, distances: np.ndarray, floor: float) -> float:
    a, b = np.abs(distances[-2:])
    return float(np.log(a / b) / np.log(d[-2] / d[-1])) if min(a, b) > floor else np.nan


def _order(d: np.ndarray, values: np.ndarray, floor: float) -> float:
    """p with (d₁^p − d₂^p)/(d₂^p − d₃^p) equal to that ratio of the last three values."""
    first, second = np.abs(np.diff(values[-3:]))
    if max(first, second) <= floor:
        return np.nan
    a, b, c = np.log(d[-3:] / d[-1])

    def ratio(p: float) -> float:  # log of the ratio of differences, also at p = 0, where they are those of logarithms
        if abs(p) < 1e-9:
            return float(np.log((a - b) / (b - c)))
        return float(np.log(np.expm1(p * (a - b)) / -np.expm1(p * (c - b))))

    wanted = np.log(max(first, floor) / max(second, floor))
    if ratio(-HIGHEST) >= wanted or ratio(HIGHEST) <= wanted:
        return HIGHEST if ratio(HIGHEST) <= wanted else -HIGHEST
    return float(brentq(lambda p: ratio(p) - wanted, -HIGHEST, HIGHEST))


def wasserstein(p: Any, q: Any, *, order: int = 2) -> float:
    """Wasserstein distance W₁ or W₂ between two densities of mass one (collective).

    They are solutions or functions, perhaps on two meshes of the same dimension, or ``fp.dirac(point)``, and become
    weights at quadrature points; in one dimension W₁ is SciPy's and W₂ that of POT (Python Optimal Transport), in more
    dimensions the plan between the quadrature points of both is POT's.

    Raises:
        ValueError: another order; a mass that is not one, or a negative part that is not small; too many points for a
            plan (coarsen the mesh).
        ModuleNotFoundError: POT is needed and not installed.
    """
    if order not in (1, 2):
        raise ValueError(f"wasserstein: order is {order!r}; 1 or 2 was expected.")
    comm = getattr(p, "function", p).function_space.mesh.comm
    (x, a), (y, b) = (_cloud(s) for s in (p, q))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"wasserstein: the densities live in {x.shape[1]} and {y.shape[1]} dimensions.")
    if x.shape[1] == 1 and order == 1:
        return float(comm.bcast(wasserstein_distance(x[:, 0], y[:, 0], a, b), root=0))
    try:
        import ot
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "wasserstein: W₂, and W₁ in more than one dimension, need POT: pip install pot (or apt: python3-pot)."
        ) from None
    if x.shape[1] == 1:
        return float(comm.bcast(np.sqrt(ot.wasserstein_1d(x[:, 0], y[:, 0], a, b, p=2)), root=0))
    if max(len(x), len(y)) > SUPPORT:
        raise ValueError(
            f"wasserstein: a plan between {len(x)} and {len(y)} points is too large (at most {SUPPORT} each); use a "
            "coarser mesh or a lower degree for these densities."
        )
    cost = ot.dist(x, y, metric="sqeuclidean" if order == 2 else "euclidean")
    total = ot.emd2(a, b, cost, numItermax=2_000_000) if comm.rank == 0 else 0.0
    return float(comm.bcast(float(total) ** (1 / order), root=0))


def _cloud(density: Any) -> tuple[np.ndarray, np.ndarray]:
    """Quadrature points with positive weights of sum one, from all ranks (collective)."""
    if isinstance(density, Dirac):
        return np.array([density.point]), np.ones(1)
    function: fem.Function = getattr(density, "function", density)
    mesh, degree = function.function_space.mesh, function.function_space.element.basix_element.degree
    # as exact as mass and second moments of the density need
    table, weights = at_quadrature(mesh, [*ufl.SpatialCoordinate(mesh), function], degree + 2)
    rows = np.concatenate(mesh.comm.allgather(np.concatenate([table, weights[..., None]], axis=2)))
    rows = rows.reshape(-1, rows.shape[2])
    points, weights = rows[:, :-2], rows[:, -2] * rows[:, -1]
    mass, negative = weights.sum(), -weights[weights < 0].sum()
    if abs(mass - 1) > 1e-3 or negative > NEGATIVE:
        raise ValueError(
            f"wasserstein: a density of mass one was expected; this one has mass {mass:.6g} and a negative part of "
            f"{negative:.2g}."
        )
    kept = weights > 1e-12 * weights.max()
    return points[kept], weights[kept] / weights[kept].sum()
