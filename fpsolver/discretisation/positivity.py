"""Non-negative densities with unchanged mass and, as far as they allow it, unchanged moments.

Cell means: a negative one is made up for by the neighbours across its facets, each in proportion to its mass, again
and again until none is left; mass moves no further than it must, and what a fixed number of sweeps leaves over all
cells bear in proportion to their mass.  Within a cell the polynomial becomes the nearest non-negative one of the same
mass, in a norm that keeps first and second moments before it keeps the shape (:mod:`._nonnegative`): the moments of a
singular density are right where its shape is not resolved.  What then is missing of a cell's first moment is passed to
the neighbours across its facets.  Where next to nothing is negative, the polynomial is drawn towards its mean instead,
p̄ + θ (p - p̄) with the largest θ <= 1 that makes it non-negative (Zhang, Shu, J. Comput. Phys. 229, 2010).

Non-negative means everywhere in the cell, not at chosen points: the minimum is bounded below by Bernstein coefficients,
where they are negative by those on a subdivision of the cell.  The bound is sharp to the second order in the
subdivision's width, so that cells are changed a little more than they must.
"""

from math import comb
from typing import Any

import basix
import numpy as np
import ufl
from dolfinx import fem, la

from .. import _compat
from .._log import logger
from .._sample import Array, degree, lagrange, lattice, neighbours, own_cells, smallest, total
from . import _nonnegative
from .generator import Generator, derived

_SUBDIVISION = {1: 16, 2: 4, 3: 2}  # of each edge
# relative to the cell's mean: what a limited cell stays above zero, so that rounding in an evaluation does not show
_MARGIN = 1e-11
_SWEEPS = 50
_PASSES = 4  # of first moments to neighbours
_FURTHEST = 1.5  # of a first mode over the mean (at most √3 or so): how far a neighbour is asked to lean
_NEGLIGIBLE = 1e-5  # of the mass, over all cells: negative parts that are drawn towards the means
_WORTH_SAYING = 0.01  # of the mass


class Limiter:
    """Limits functions of a Lagrange or DG space; tables are made once (collective)."""

    def __init__(self, V: fem.FunctionSpace):
        known = lagrange(V)
        if known is None:
            raise ValueError(f"densities are limited on Lagrange or DG spaces, not on {V.ufl_element()}.")
        self.V, mesh, k, dim = V, V.mesh, degree(V), V.mesh.topology.dim
        self.comm, self.owned, self.cells = mesh.comm, len(own_cells(mesh)), mesh.topology.index_map(dim).size_global
        self.target = V if known[0] == "DG" else fem.functionspace(mesh, ("DG", k))
        x = ufl.SpatialCoordinate(mesh)
        self.weights = self._integrals(ufl.as_ufl(1.0))
        self.volumes: Array = self.weights.sum(axis=1)
        self._moments = np.stack([self._integrals(x[i]) for i in range(dim)], axis=2)[: self.owned]
        self._diameters = self.volumes[: self.owned] ** (1 / dim)
        self._cells = fem.Function(fem.functionspace(mesh, ("DG", 0)))
        mesh.topology.create_entities(dim - 1)
        facets = mesh.topology.index_map(dim - 1)
        pairs = neighbours(mesh, np.arange(facets.size_local + facets.num_ghosts))[0]
        pairs = pairs[(pairs >= 0).all(axis=1)]
        pairs = np.concatenate([pairs, pairs[:, ::-1]])
        self._neighbours = pairs[pairs[:, 0] < self.owned].T  # an owned cell, and one across a facet
        element = V.element.basix_element
        self._whole, self._parts = (_bernstein(element, dim, n) for n in (1, _SUBDIVISION[dim]))
        self._modes, self._to_modes, degrees = _legendre(element, dim)
        self._first, self._weight = int((degrees == 1).sum()), _nonnegative.WEIGHTS[np.minimum(degrees, 3) - 1]
        table = element.tabulate(0, lattice(dim, max(k, 1) * _SUBDIVISION[dim])[0])[0, :, :, 0]
        self._lattice = np.where(abs(table) < 1e-14, 0.0, table)  # at a node the values at others do not count

    def _integrals(self, factor: Any) -> Array:
        """∫ factor φ_i over each local cell, ghosts included, shape (cells, n)."""
        mesh = self.V.mesh
        order = degree(self.V) + 1 + mesh.topology.dim * (_compat.coordinate_map(mesh).degree - 1)
        dx = ufl.dx(domain=mesh, metadata={"quadrature_degree": order})
        found = fem.Function(self.target)
        fem.assemble_vector(found.x.array, fem.form(factor * ufl.TestFunction(self.target) * dx))
        found.x.scatter_forward()
        return np.asarray(found.x.array[self.target.dofmap.list])

    def means(self, function: fem.Function) -> Array:
        """Cell means, ghosts included, shape (cells,)."""
        return np.einsum("ci,ci->c", self.weights, function.x.array[self.V.dofmap.list]) / self.volumes

    def minimum(self, function: fem.Function) -> float:
        """Smallest value on a lattice in each cell, nodes and points between them (collective)."""
        return smallest(self.comm, function.x.array[self.V.dofmap.list[: self.owned]] @ self._lattice.T)

    def masses(self, means: Array) -> tuple[float, float]:
        """Integrals of the cell means and of their positive part (collective)."""
        parts = self.volumes[: self.owned] * means[: self.owned]
        whole, positive = total(self.comm, [parts.sum(), np.maximum(parts, 0.0).sum()])
        return float(whole), float(positive)

    def _gathered(self, local: Array) -> Array:
        """A value per local cell, to which other ranks have contributed at their ghosts (collective)."""
        self._cells.x.array[:] = local
        self._cells.x.scatter_reverse(la.InsertMode.add)
        self._cells.x.scatter_forward()
        return self._cells.x.array.copy()

    def _settle(self, means: Array, mass: float) -> Array:
        """Non-negative cell means with the same mass (collective)."""
        (i, j), held, n = self._neighbours, means * self.volumes, len(means)
        for _ in range(_SWEEPS):
            if smallest(self.comm, held[: self.owned]) >= 0:
                break
            share = np.where(held[i] < 0, np.maximum(held[j], 0.0), 0.0)
            wealth = np.bincount(i, share, minlength=n)
            # what neighbours cannot bear stays a deficit of the cell
            taken = np.minimum(np.maximum(-held, 0.0), wealth)
            moved = np.divide(taken, wealth, out=np.zeros(n), where=wealth > 0)[i] * share
            held = held + self._gathered(np.bincount(i, moved, minlength=n) - np.bincount(j, moved, minlength=n))
        settled = np.maximum(held / self.volumes, 0.0)
        return settled * (mass / self.masses(settled)[1])

    def limit(self, function: fem.Function) -> tuple[fem.Function, dict[str, float]]:
        """The density made non-negative, and what share of the mass and how far the mean have moved (collective)."""
        means = self.means(function)
        mass, _ = self.masses(means)
        if not mass > 0:
            raise ValueError(f"{function.name}: its integral is {mass:.3g}; a density has a positive one.")
        c = function.x.array[self.V.dofmap.list][: self.owned]
        new = self._settle(means, mass)
        low = self._lower(c) < _MARGIN * means[: self.owned]
        low |= abs(new - means)[: self.owned] > 1e-13 * abs(means[: self.owned])
        if not self.comm.allreduce(int(low.sum())):
            return function, {"limited": 0.0, "mean_shift": 0.0}
        limited = self._within(c, means[: self.owned], new, low, mass)
        answer = fem.Function(self.target, name=function.name)
        answer.x.array[self.target.dofmap.list[: self.owned]] = limited
        answer.x.scatter_forward()
        moved = 0.5 * self.volumes[: self.owned] * abs((limited - c) @ self._lattice.T).mean(axis=1)
        shift = total(self.comm, [moved.sum(), *np.einsum("ci,cid->d", limited - c, self._moments)]) / mass
        if shift[0] > _WORTH_SAYING:
            logger.warning(
                "%s: the mesh does not resolve it, and making it non-negative has moved %.2g of its mass inside cells "
                "and between neighbours. Refine where it peaks, or take .raw, whose moments are right.",
                answer.name, shift[0],
            )  # fmt: skip
        return answer, {"limited": float(shift[0]), "mean_shift": float(np.linalg.norm(shift[1:]))}

    def _lower(self, c: Array) -> Array:
        """A lower bound of each polynomial, sharp where it is negative."""
        lower = (c @ self._whole.T).min(axis=1, initial=np.inf)
        near = np.flatnonzero(lower < abs(c).max(axis=1, initial=0.0))
        lower[near] = (c[near] @ self._parts.T).min(axis=1, initial=np.inf)
        return np.asarray(lower)

    def _within(self, c: Array, means: Array, new: Array, low: Array, mass: float) -> Array:
        """Non-negative coefficients of the cells ``low`` and of those that take over moments (collective)."""
        mean, volumes = new[: self.owned], self.volumes[: self.owned]
        modes = np.zeros((self.owned, len(self._weight)))
        seen = means > 1e-200 * abs(c).max(axis=1, initial=0.0)  # of a mean beyond rounding: no shape
        np.divide(c @ self._to_modes.T, means[:, None], out=modes, where=seen[:, None])
        wanted = np.einsum("ci,cid->cd", c, self._moments)
        limited = c * np.divide(mean, means, out=np.zeros_like(means), where=means > 0)[:, None]
        floor, todo = _NEGLIGIBLE * mass / self.cells, low
        for _ in range(_PASSES):
            some = np.flatnonzero(todo & (mean > 0))
            limited[todo] = 0.0
            limited[some] = self._nearest(modes[some], wanted[some], mean[some], floor / volumes[some], some)
            missing = wanted - np.einsum("ci,cid->cd", limited, self._moments)
            passed = self._pass_on(missing, new * self.volumes)
            todo = (passed != 0).any(axis=1)
            if not self.comm.allreduce(int(todo.sum())):
                break
            wanted = wanted + passed
        return limited

    def _nearest(self, modes: Array, wanted: Array, mean: Array, floor: Array, cells: Array) -> Array:
        """Nodal values of the admissible polynomials nearest to the given ones with the wanted first moments."""
        weights, moments = self.weights[cells], self._moments[cells]
        averages = weights @ self._modes / self.volumes[cells, None]
        first = slice(self._first)

        def assemble(z: Array) -> Array:
            return mean[:, None] * (1.0 + z @ self._modes.T - (z * averages).sum(axis=1, keepdims=True))

        # how the first moments depend on the first modes
        lever = np.einsum("cid,ij->cdj", moments, self._modes[:, first])
        lever -= np.einsum("cid,cj->cdj", moments, averages[:, first])
        missing = wanted - np.einsum("ci,cid->cd", assemble(modes), moments)
        lean = np.linalg.solve(lever, missing[..., None])[..., 0]
        with np.errstate(over="ignore"):  # by a mean that is next to nothing: as far as it is asked to
            inverse = 1.0 / mean[:, None]
        lean *= np.minimum(inverse, _FURTHEST / np.maximum(np.linalg.norm(lean, axis=1, keepdims=True), 1e-300))
        target = modes.copy()
        target[:, first] += lean
        lower = self._lower(assemble(target))
        scaled = np.flatnonzero((lower < _MARGIN * mean) & (lower >= -floor))
        theta = (1 - _MARGIN) * mean[scaled] / (mean[scaled] - lower[scaled])
        target[scaled] *= theta[:, None]
        hard = np.flatnonzero(lower < -floor)
        table = self._parts @ self._modes
        target[hard] = _nonnegative.nearest(target[hard], table, averages[hard], self._weight, _MARGIN)
        return np.asarray(assemble(target))

    def _pass_on(self, missing: Array, masses: Array) -> Array:
        """Changes of the wanted first moments: what cells lack goes to their neighbours, by mass (collective)."""
        n, dim = len(masses), missing.shape[1]
        i, j = self._neighbours
        wealth = np.bincount(i, masses[j], minlength=n)
        size = np.linalg.norm(missing, axis=1)
        lacking = size > 1e-9 * float(total(self.comm, masses[: self.owned] @ self._diameters)) / self.cells
        lacking &= wealth[: self.owned] > 0
        passed = np.empty_like(missing)
        share = np.divide(masses[j], wealth[i], out=np.zeros(len(i)), where=lacking[i])
        for axis in range(dim):
            given = np.bincount(j, share * missing[i, axis], minlength=n)
            passed[:, axis] = self._gathered(given)[: self.owned]
        passed[lacking] -= missing[lacking]
        return passed


def make_nonnegative(function: fem.Function) -> fem.Function:
    """A density, in a Lagrange or DG space, made non-negative at every point with unchanged mass (collective).

    Where nothing had to be changed, ``function`` itself is returned, otherwise a discontinuous function of the same
    degree.  Mass moves inside cells, and between neighbours where cell means are negative; the first moments of a cell
    and its neighbours are kept as far as non-negative polynomials can.

    Raises:
        ValueError: another element, or the integral is not positive.
    """
    return Limiter(function.function_space).limit(function)[0]


@derived
def limiter(gen: Generator) -> Limiter:
    """The limiter of a generator's densities, made once (collective)."""
    return Limiter(gen.V)


def _bernstein(element: Any, dim: int, n: int) -> Array:
    """Matrix from coefficients of ``element`` to Bernstein coefficients on the n^dim parts of a cell."""
    k = element.degree
    if k == 0:
        return np.ones((1, 1))
    Y, (X, cells) = lattice(dim, k)[0], lattice(dim, n)
    corners = X[cells]
    points = corners[:, :1] + np.einsum("px,cxy->cpy", Y, corners[:, 1:] - corners[:, :1])
    values = element.tabulate(0, points.reshape(-1, dim))[0, :, :, 0].reshape(len(cells), len(Y), -1)
    bernstein = basix.create_element(basix.ElementFamily.P, element.cell_type, k, basix.LagrangeVariant.bernstein)
    basis = bernstein.tabulate(0, Y)[0, :, :, 0]
    return np.unique(np.linalg.solve(basis, values).reshape(-1, values.shape[2]).round(13), axis=0)


def _legendre(element: Any, dim: int) -> tuple[Array, Array, Array]:
    """Orthonormal modes over the constant one: nodal values (n, modes), nodal values to modes, and their degrees."""
    k = element.degree
    X, weights = basix.make_quadrature(element.cell_type, 2 * k)
    modes = basix.create_element(
        basix.ElementFamily.P, element.cell_type, k, basix.LagrangeVariant.legendre, basix.DPCVariant.unset, True
    )
    psi, phi = modes.tabulate(0, X)[0, :, :, 0], element.tabulate(0, X)[0, :, :, 0]
    to_modes = psi.T @ (weights[:, None] * phi)
    degrees = np.repeat(np.arange(k + 1), [comb(i + dim - 1, i) for i in range(k + 1)])
    return np.linalg.inv(to_modes)[:, 1:], to_modes[1:], degrees[1:]
