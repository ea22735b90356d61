"""All invariant laws of a process that has several, and how an initial law divides its mass among them.

The kernel of G is spanned by the ergodic laws μ_i, that of Gᵀ by the probabilities p_i(x) of ending in law i, with
Σ p_i = 1 and p_i = 1 on the support of μ_i.  Any basis q = (q_1, ..., q_r) of the latter maps the domain into a simplex
whose vertices are the supports, so that the p_i are the barycentric coordinates of q (as for almost invariant sets:
Deuflhard, Weber, Linear Algebra Appl. 398, 2005).  ∫ p_i μ_j = δ_ij then gives the laws.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from mpi4py import MPI

import numpy as np
import ufl

from .. import _compat
from .._answer import Answer
from .._log import logger
from .._petsc import Options
from ..discretisation.assembly import to_density, to_function, to_vector
from ..discretisation.generator import Generator
from ..discretisation.positivity import limiter
from ..discretisation.solution import Solution
from ..discretisation.solver import statistics
from ..evolution.initial import load
from ..models.fields import integrate
from ._kernel import Array, Kernel


@dataclass(frozen=True)
class ErgodicLaws(Answer):
    """The invariant laws of which every other is a mixture.

    Attributes:
        laws: their densities, each of mass one.  Of a point mass, the mesh's idea of it.
        probabilities: p_i(x) = P(the law of X_t tends to ``laws[i]`` | X_0 = x), backward harmonic; their sum is one.
        centers: means, shape (n, d).
        radii: distance from the mean within which half of the mass lies, shape (n,).
        points: whether that is less than the cell there: the mesh cannot tell the law from a point mass.
        supports: corners of the smallest box of cells with 99.9 % of the mass, shape (n, 2, d).
        rates: |λ| of the modes that were counted as zero, and of the slowest that was not, shape (m + 1,); m exceeds n
            where the mesh has the two sides of one point mass apart.
    """

    laws: tuple[Solution, ...]
    probabilities: tuple[Solution, ...]
    centers: Array
    radii: Array
    points: tuple[bool, ...]
    supports: Array
    rates: Array
    _gen: Generator

    def __len__(self) -> int:
        return len(self.laws)

    def weights(self, initial: Any) -> Array:
        """Mass that ends in each law, shape (n,), from an initial law as in :func:`~fpsolver.evolve` (collective).

        Their sum is the initial mass, one for :func:`~fpsolver.gaussian` and :func:`~fpsolver.dirac`.
        """
        source = load(self._gen, initial.raw if isinstance(initial, Solution) else initial, "initial density")
        weights = np.array([source.dot(to_vector(self._gen, p.function)) for p in self.probabilities])
        mass = float(source.sum())
        if abs(weights.sum() - mass) < 1e-9 * abs(mass):  # rounding of null vectors, in the share of each alike
            weights *= mass / weights.sum()
        return weights

    def __repr__(self) -> str:
        places = ", ".join(
            f"{'a point' if point else f'radius {radius:.3g}'} at {np.array2string(center, precision=4)}"
            for point, radius, center in zip(self.points, self.radii, self.centers, strict=True)
        )
        return f"{len(self)} ergodic law(s): {places}"


def ergodic_laws(gen: Generator, *, tolerance: float | None = None, options: Options | None = None) -> ErgodicLaws:
    """Every ergodic law of a process without absorption, and the probabilities of ending in each (collective).

    A rate counts as zero if it changes by a factor of two or more when the degree is lowered or raised by one (for
    degree one, raised by one or two), in other words if it is not known to differ from zero, and the next is ten times
    as large; with ``tolerance``, if it is at most that.  A metastable process has small rates that are resolved: those
    are not counted.  ``options`` are PETSc's without the prefix ``fp_stationary_``.

    Raises:
        ValueError: mass leaves; more laws than can be told apart; no gap between zero and other rates.
        NotConverged: the factorisation failed.
    """
    if gen.absorbing:
        raise ValueError(
            f"ergodic_laws: mass leaves through {', '.join(gen.absorbing)}, so there is no invariant law; "
            "build the generator without absorbing parts."
        )
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"ergodic_laws: tolerance is {tolerance!r}; a rate of at least zero was expected.")
    kernel = Kernel(gen, options)
    count = kernel.count(tolerance)
    right, left = kernel.basis(count, transpose=False), kernel.basis(count, transpose=True)
    answer = _merge(gen, *_separate(kernel, right, left), kernel.rates[: count + 1])
    logger.info("%s", answer)
    return answer


def _separate(kernel: Kernel, right: Array, left: Array) -> tuple[Array, Array]:
    """Laws and probabilities, shape (owned unknowns, r) each."""
    comm = kernel.gen.domain.comm
    vertices = _outermost(comm, left)
    for _ in range(3):
        harmonic = left @ np.linalg.inv(vertices)
        laws = right @ np.linalg.inv(kernel.dot(harmonic, kernel.mass(right)))
        # the outermost node may overshoot where probabilities jump inside a cell; at the peak of a law they are flat
        peaks = np.where(harmonic > 0.5, laws, -np.inf)
        vertices = np.array([_best(comm, peaks[:, i], left)[0] for i in range(laws.shape[1])])
    return laws, harmonic


def _outermost(comm: MPI.Comm, points: Array) -> Array:
    """r of the points (n, r) that span the largest simplex, chosen one after the other, shape (r, r) (collective)."""
    r = points.shape[1]
    chosen = _best(comm, np.linalg.norm(points, axis=1), points)
    rest = points - chosen[0]
    for _ in range(r - 1):
        vertex, direction = _best(comm, np.linalg.norm(rest, axis=1), points, rest)
        chosen.append(vertex)
        direction = direction / np.linalg.norm(direction)
        rest = rest - np.outer(rest @ direction, direction)
    return np.array(chosen)


def _best(comm: MPI.Comm, score: Array, *tables: Array) -> list[Array]:
    """The row of each table with the largest score on any rank (collective)."""
    best = int(np.argmax(score)) if len(score) else 0
    mine = (float(score[best]), [t[best] for t in tables]) if len(score) else (-np.inf, [])
    return max(comm.allgather(mine), key=lambda candidate: candidate[0])[1]


class _Place(NamedTuple):
    """Where a law lives."""

    center: Array
    radius: float
    cell: float
    support: Array

    @property
    def point(self) -> bool:
        return self.radius <= self.cell


def _merge(gen: Generator, laws: Array, harmonic: Array, rates: Array) -> ErgodicLaws:
    """Answers of which the two sides of one point mass are one."""
    limit = limiter(gen)
    groups: list[list[int]] = []
    places: list[_Place] = []
    for i in range(laws.shape[1]):
        place = _locate(gen, _made(gen, laws[:, i], to_density))
        for group, other in zip(groups, places, strict=True):
            if place.point and other.point and np.linalg.norm(place.center - other.center) <= place.cell + other.cell:
                group.append(i)
                break
        else:
            groups.append([i])
            places.append(place)
    order = sorted(range(len(groups)), key=lambda g: tuple(np.round(places[g].center, 9)))
    places = [places[g] for g in order]
    stats = {**statistics(gen), "rate": float(rates[-2])}
    densities = [_made(gen, laws[:, groups[g]].mean(axis=1), to_density) for g in order]
    backward = [_made(gen, harmonic[:, groups[g]].sum(axis=1), to_function) for g in order]
    return ErgodicLaws(
        tuple(Solution(p, stats, f"ergodic law {i}", limiter=limit) for i, p in enumerate(densities)),
        tuple(Solution(p, stats, f"probability of law {i}") for i, p in enumerate(backward)),
        np.array([p.center for p in places]),
        np.array([p.radius for p in places]),
        tuple(p.point for p in places),
        np.array([p.support for p in places]),
        rates,
        gen,
    )


def _made(gen: Generator, values: Array, make: Any) -> Any:
    """The function or density with these coefficients."""
    vector = gen.G.createVecRight()
    vector.array_w[:] = values
    return make(gen, vector)


def _locate(gen: Generator, raw: Any) -> _Place:
    """Mean, half-mass radius and support of a density (collective)."""
    mesh, limit = gen.domain.mesh, limiter(gen)
    x = ufl.SpatialCoordinate(mesh)
    center = np.array([integrate(mesh, x[i] * raw, gen.degree + 1) for i in range(gen.domain.dim)])
    density = limit.limit(raw)[0]
    owned = slice(limit.owned)
    space = limit.V if density is raw else limit.target
    mass = np.einsum("ci,ci->c", limit.weights, density.x.array[space.dofmap.list])[owned]
    nodes = mesh.geometry.x[_compat.geometry_dofmap(mesh)[owned]][:, :, : gen.domain.dim]
    mine = (mass, limit.volumes[owned], nodes.min(axis=1), nodes.max(axis=1))
    mass, volume, lower, upper = (np.concatenate(gen.domain.comm.allgather(column)) for column in mine)
    distance = np.linalg.norm((lower + upper) / 2 - center, axis=1)
    near = np.argsort(distance)
    radius = float(distance[near][np.searchsorted(np.cumsum(mass[near]), 0.5 * mass.sum())])
    dense = np.argsort(-mass / volume)
    carrying = dense[: np.searchsorted(np.cumsum(mass[dense]), 0.999 * mass.sum()) + 1]
    cell = float(np.linalg.norm(upper - lower, axis=1)[near[0]])
    support = np.array([lower[carrying].min(axis=0), upper[carrying].max(axis=0)])
    return _Place(center, radius, cell, support)
