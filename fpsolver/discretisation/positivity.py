"""Non-negative densities with unchanged mass, from discrete ones that undershoot.

Two steps.  Cell means: a negative one is made up for by the neighbours across its facets, each in proportion to its
mass, again and again until none is left; mass moves no further than it must, and what a fixed number of sweeps leaves
over all cells bear in proportion to their mass.  Within a cell the polynomial is drawn towards its mean, p̄ + θ (p - p̄)
with the largest θ <= 1 that makes it non-negative (Zhang, Shu, J. Comput. Phys. 229, 2010).

Non-negative means everywhere in the cell, not at chosen points: the minimum is bounded below by Bernstein coefficients,
where they are negative by those on a subdivision of the cell.  The bound is sharp to the second order in the
subdivision's width, so that cells are changed a little more than they must.
"""

from functools import lru_cache
from math import factorial, prod
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem, la

from .. import _compat
from .._sample import degree, lagrange, lattice
from .generator import Generator

Array = npt.NDArray[Any]

_SUBDIVISION = {1: 8, 2: 4, 3: 2}  # of each edge
# relative to the cell's mean: what a limited cell stays above zero, so that rounding in an evaluation does not show
_MARGIN = 1e-11
_SWEEPS = 50


class Limiter:
    """Limits functions of one space; tables are made once (collective).

    Args:
        V: Lagrange or DG space.

    Raises:
        ValueError: another element.
    """

    def __init__(self, V: fem.FunctionSpace):
        known = lagrange(V)
        if known is None:
            raise ValueError(f"densities are limited on Lagrange or DG spaces, not on {V.ufl_element()}.")
        self.V, mesh, k = V, V.mesh, degree(V)
        self.target = V if known[0] == "DG" else fem.functionspace(mesh, ("DG", k))
        dim = mesh.topology.dim
        self.owned = mesh.topology.index_map(dim).size_local
        quadrature = k + dim * (_compat.coordinate_map(mesh).degree - 1)
        metadata = {"quadrature_degree": quadrature}
        weights = fem.Function(self.target)
        form = fem.form(ufl.TestFunction(self.target) * ufl.dx(domain=mesh, metadata=metadata))
        fem.assemble_vector(weights.x.array, form)
        weights.x.scatter_forward()
        self.weights: Array = weights.x.array[self.target.dofmap.list]
        self.volumes: Array = self.weights.sum(axis=1)
        self._cells = fem.Function(fem.functionspace(mesh, ("DG", 0)))
        self._neighbours = _facet_neighbours(mesh)
        element = V.element.basix_element
        self._whole, self._parts = (_bernstein(element, dim, n) for n in (1, _SUBDIVISION[dim]))

    def means(self, function: fem.Function) -> Array:
        """Cell means, ghosts included, shape (cells,)."""
        return np.einsum("ci,ci->c", self.weights, function.x.array[self.V.dofmap.list]) / self.volumes

    def masses(self, means: Array) -> tuple[float, float]:
        """Integrals of the cell means and of their positive part (collective)."""
        parts = self.volumes[: self.owned] * means[: self.owned]
        local, total = np.array([parts.sum(), np.maximum(parts, 0.0).sum()]), np.zeros(2)
        self.V.mesh.comm.Allreduce(local, total, op=MPI.SUM)
        return float(total[0]), float(total[1])

    def _settle(self, means: Array, mass: float) -> Array:
        """Non-negative cell means with the same mass (collective)."""
        cells = self._cells
        total = means * self.volumes
        for _ in range(_SWEEPS):
            if not self.V.mesh.comm.allreduce(int((total[: self.owned] < 0).sum()), op=MPI.SUM):
                break
            i, j = self._neighbours  # i owned, j across a facet
            share = np.where(total[i] < 0, np.maximum(total[j], 0.0), 0.0)
            wealth = np.bincount(i, share, minlength=len(total))
            # what neighbours cannot bear stays a deficit of the cell
            taken = np.minimum(np.maximum(-total, 0.0), wealth)
            moved = np.divide(taken, wealth, out=np.zeros_like(total), where=wealth > 0)[i] * share
            change = np.bincount(i, moved, minlength=len(total)) - np.bincount(j, moved, minlength=len(total))
            cells.x.array[:] = change
            cells.x.scatter_reverse(la.InsertMode.add)
            cells.x.scatter_forward()
            total = total + cells.x.array
        settled = np.maximum(total / self.volumes, 0.0)
        return settled * (mass / self.masses(settled)[1])

    def __call__(self, function: fem.Function) -> fem.Function:
        """See :func:`make_nonnegative`."""
        means = self.means(function)
        mass, _ = self.masses(means)
        if not mass > 0:
            raise ValueError(f"{function.name}: its integral is {mass:.3g}; a density has a positive one.")
        c, new = function.x.array[self.V.dofmap.list], self._settle(means, mass)
        lower = (c @ self._whole.T).min(axis=1, initial=np.inf)
        low = np.flatnonzero(lower < _MARGIN * means)
        lower[low] = (c[low] @ self._parts.T).min(axis=1, initial=np.inf)
        low = low[lower[low] < _MARGIN * means[low]]
        if not self.V.mesh.comm.allreduce(len(low), op=MPI.SUM):
            return function
        factor = np.divide(new, means, out=np.zeros_like(means), where=means > 0)
        theta, gap = np.ones_like(means), means[low] - lower[low]
        theta[low] = np.divide((1 - _MARGIN) * means[low], gap, out=np.zeros_like(gap), where=gap > 0)
        limited = new[:, None] + (factor * theta)[:, None] * (c - means[:, None])
        answer = fem.Function(self.target, name=function.name)
        answer.x.array[self.target.dofmap.list] = limited
        return answer


def make_nonnegative(function: fem.Function) -> fem.Function:
    """The density ``function`` made non-negative with unchanged mass (collective).

    Non-negative holds at every point of every cell, to rounding in the evaluation.  Where nothing had to be changed,
    ``function`` itself is returned, otherwise a discontinuous function of the same degree: continuity is given up
    where the limiter acts.  Nothing is averaged over time or space: accuracy is lost only where the mesh
    does not resolve the density.

    Args:
        function: real, in a Lagrange or DG space, with positive integral.

    Raises:
        ValueError: another element, or the integral is not positive.
    """
    return Limiter(function.function_space)(function)


def limiter(gen: Generator) -> Limiter:
    """The limiter of a generator's densities, made once (collective)."""
    return gen.cached("limiter", lambda: Limiter(gen.V))


def _facet_neighbours(mesh: Any) -> tuple[Array, Array]:
    """Pairs of an owned cell and a local one across a facet."""
    dim = mesh.topology.dim
    mesh.topology.create_connectivity(dim - 1, dim)
    cells = mesh.topology.connectivity(dim - 1, dim)
    interior = np.flatnonzero(np.diff(cells.offsets) == 2)
    i, j = cells.array[cells.offsets[interior]], cells.array[cells.offsets[interior] + 1]
    i, j = np.concatenate([i, j]), np.concatenate([j, i])
    owned = i < mesh.topology.index_map(dim).size_local
    return i[owned], j[owned]


@lru_cache
def _exponents(dim: int, k: int) -> Array:
    """Multi-indices of dim + 1 entries with sum k."""
    if dim == 0:
        return np.array([[k]])
    return np.array([[i, *rest] for i in range(k + 1) for rest in _exponents(dim - 1, k - i)])


def _bernstein(element: Any, dim: int, n: int) -> Array:
    """Matrix from coefficients of ``element`` to Bernstein coefficients on the n^dim parts of a cell, stacked."""
    k = element.degree
    alpha = _exponents(dim, k)
    multinomial = np.array([factorial(k) / prod(factorial(int(i)) for i in a) for a in alpha])
    collocation = multinomial * np.prod((alpha / k)[:, None, :] ** alpha[None, :, :], axis=2)
    X, cells = lattice(dim, n)
    points = np.einsum("av,cvx->cax", alpha / k, X[cells]).reshape(-1, dim)
    values = element.tabulate(0, points)[0, :, :, 0].reshape(len(cells), len(alpha), -1)
    return np.linalg.solve(collocation, values).reshape(-1, values.shape[2])
