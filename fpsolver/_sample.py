"""Fields of any degree as piecewise linear ones on small cells, gathered on rank 0: what pictures are drawn from."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, permutations, product
from typing import Any

from mpi4py import MPI

import basix
import numpy as np
import numpy.typing as npt
from dolfinx import fem
from dolfinx import mesh as dmesh

from . import _compat

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """A scalar field on small cells that share no points, so that it may jump.

    Attributes:
        comm: communicator of the mesh.
        dim: its dimension.
        points: shape (n, dim), on rank 0 only, as what follows.
        values: values at the points, shape (n,).
        cells: points of each small cell, shape (m, dim + 1).
    """

    comm: MPI.Comm
    dim: int
    points: Array
    values: Array
    cells: Array


def lagrange(V: fem.FunctionSpace) -> tuple[str, int] | None:
    """Family ("Lagrange" or "DG") and degree of a space, None if its values are not those at nodes."""
    try:
        e = V.element.basix_element
    except RuntimeError:  # a mixed element
        return None
    if e.family != basix.ElementFamily.P:
        return None
    return "DG" if e.discontinuous or e.degree == 0 else "Lagrange", e.degree


def degree(V: fem.FunctionSpace) -> int:
    """Degree of the smallest complete polynomial space that contains the functions of V on a cell."""
    known = lagrange(V)
    return known[1] if known else int(V.ufl_element().embedded_superdegree)


def sample(f: Any, budget: int = 200_000) -> Sample:
    """Evaluate a scalar function on a lattice in each cell (collective).

    Args:
        f: the function.
        budget: small cells to aim at, in all; each cell is cut at least into its share for the degree.

    Raises:
        ValueError: if it is not a scalar function.
    """
    if not isinstance(f, fem.Function):
        raise ValueError(f"expected a DOLFINx function or a solution to draw, got {type(f).__name__}")
    V = f.function_space
    if tuple(V.value_shape):
        raise ValueError(f"expected a scalar function, {f.name!r} has shape {V.value_shape}; draw f.sub(i).collapse()")
    msh, k = V.mesh, degree(V)
    if not lagrange(V):
        f, g = fem.Function(fem.functionspace(msh, ("DG", k))), f
        f.interpolate(g)
        V = f.function_space
    dim = msh.topology.dim
    owned = msh.topology.index_map(dim)
    smooth = max(k, _compat.coordinate_map(msh).degree)
    wanted = 1 if smooth <= 1 else 4 * smooth if dim == 1 else 2 * smooth
    affordable = int((budget / max(owned.size_global, 1)) ** (1 / dim))
    X, small = lattice(dim, max(1, min(wanted, max(affordable, min(smooth, 2)))))
    values = f.x.array[V.dofmap.list[: owned.size_local]] @ V.element.basix_element.tabulate(0, X)[0, :, :, 0].T
    points = push_forward(msh, X, np.arange(owned.size_local))
    pieces = msh.comm.gather((points, values), root=0)
    if pieces is None:
        return Sample(msh.comm, dim, *[np.empty(0)] * 3)
    points = np.concatenate([p.reshape(-1, dim) for p, _ in pieces])
    values = np.concatenate([v.ravel() for _, v in pieces])
    cells = (np.arange(0, len(points), len(X))[:, None, None] + small).reshape(-1, dim + 1)
    return Sample(msh.comm, dim, points, values, cells)


def push_forward(msh: dmesh.Mesh, X: Array, cells: Array) -> Array:
    """Images of reference points X, shape (n, tdim), in some cells: shape (cells, n, gdim)."""
    cmap, nodes = _compat.coordinate_map(msh), _compat.geometry_dofmap(msh)[cells]
    element = basix.create_element(
        basix.ElementFamily.P,
        getattr(basix.CellType, msh.topology.cell_name()),
        cmap.degree,
        basix.LagrangeVariant(cmap.variant),
    )
    phi = element.tabulate(0, X)[0, :, :, 0]
    return np.einsum("pn,cnx->cpx", phi, msh.geometry.x[nodes][:, :, : msh.geometry.dim])


def facet_curves(msh: dmesh.Mesh, facets: Array, n: int = 6) -> Array:
    """Polygons along edges of triangles, shape (edges, points, 2); ``facets`` are pairs (cell, local facet)."""
    corners = np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
    n = n if _compat.coordinate_map(msh).degree > 1 else 1
    s = np.linspace(0, 1, n + 1)[:, None]
    curves = np.empty((len(facets), n + 1, 2))
    for i, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):  # edge i is opposite to vertex i
        mine = facets[:, 1] == i
        curves[mine] = push_forward(msh, corners[a] * (1 - s) + corners[b] * s, facets[mine, 0])
    return curves


@lru_cache
def lattice(dim: int, n: int) -> tuple[Array, Array]:
    """Points of the reference simplex with spacing 1/n, and the n^dim small simplices between them.

    Freudenthal's subdivision of n >= y_1 >= ... >= y_dim >= 0 into paths along the axes.
    """
    numbers: dict[tuple[int, ...], int] = {}
    cells = []
    for corner in product(range(n), repeat=dim):
        for order in permutations(range(dim)):
            y, path = list(corner), [corner]
            for axis in order:
                y[axis] += 1
                path.append(tuple(y))
            if all(a >= b for p in path for a, b in pairwise(p)):
                cells.append([numbers.setdefault(p, len(numbers)) for p in path])
    levels = np.array(list(numbers), dtype=np.float64)
    X = np.clip((levels - np.column_stack((levels[:, 1:], np.zeros(len(levels))))) / n, 0, 1)
    return X, np.array(cells)
