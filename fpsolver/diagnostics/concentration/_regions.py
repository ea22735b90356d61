"""Integrals over parts of the domain that the mesh does not follow: balls, and basins of attraction.

Cells that a boundary crosses are cut into halves again and again; each of the last pieces counts with its share inside.
The error is of second order in the size of the last pieces, and is reported from two levels of cutting.
"""

from collections.abc import Callable

from petsc4py import PETSc

import basix
import numpy as np
from dolfinx import fem, la
from dolfinx import mesh as dmesh

from ... import _compat
from ..._sample import coordinate_element, largest, lattice
from ...discretisation.assembly import to_vector
from ...discretisation.generator import Generator
from ..sampling import Array, owned_nodes

# from the corners of pieces, shape (n, d + 1, d): the share of each region, shape (n, k), and which pieces to cut
Classify = Callable[[Array], tuple[Array, Array]]
_CHUNK = 20_000  # pieces whose basis functions are tabulated at once
_FINENESS = {1: 20, 2: 7, 3: 3}  # the last pieces at a ball are smaller than 2^-n of its radius


def _cut(mesh: dmesh.Mesh, classify: Classify, levels: int) -> tuple[Array, Array, Array]:
    """Pieces of this rank's own cells that touch one of k regions.

    The cell of each (n,), its corners in reference coordinates (n, d + 1, d), and the share of each region (n, k).
    """
    dim = mesh.topology.dim
    X, children = lattice(dim, 2)
    barycentric = np.column_stack([1 - X.sum(axis=1), X])[children]
    nodes, element = owned_nodes(mesh), coordinate_element(mesh)
    cells: Array = np.arange(len(nodes))
    corners = np.broadcast_to(np.concatenate([np.zeros((1, dim)), np.eye(dim)]), (len(cells), dim + 1, dim))
    done: list[tuple[Array, Array, Array]] = []
    for level in range(levels + 1):
        flat = corners.reshape(-1, dim)
        table = element.tabulate(0, flat)[0] if len(flat) else flat  # basix does not take none
        table = table.reshape(*corners.shape[:2], element.dim)
        share, crossed = classify(np.einsum("nqm,nmx->nqx", table, nodes[cells]))
        crossed &= level < levels
        keep = ~crossed & (share > 0).any(axis=1)
        done.append((cells[keep], corners[keep], share[keep]))
        cells = np.repeat(cells[crossed], len(children))
        corners = np.einsum("sij,njx->nsix", barycentric, corners[crossed]).reshape(-1, dim + 1, dim)
    cells, corners, share = (np.concatenate(parts) for parts in zip(*done, strict=True))
    return cells, corners, share


def loads(
    gen: Generator, classify: Classify, levels: int, weight: Callable[[Array], Array] | None = None
) -> list[PETSc.Vec]:
    """Vectors ℓ_i = ∫ 1_A g φ_i for each region A, whose boundary is found by so many cuts (collective).

    ℓᵀp integrates g p over A; ``weight`` maps points (n, q, d) to g (n, q), which is one without.
    """
    mesh = gen.domain.mesh
    cells, corners, share = _cut(mesh, classify, levels)
    functions = [fem.Function(gen.V) for _ in share.T]
    nodes, coordinates, dim = owned_nodes(mesh), coordinate_element(mesh), mesh.topology.dim
    X, w = basix.make_quadrature(coordinates.cell_type, gen.degree + 4)
    barycentric = np.column_stack([1 - X.sum(axis=1), X])
    for begin in range(0, len(share), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        cell, corner = cells[part], corners[part]
        flat = np.einsum("qi,nix->nqx", barycentric, corner).reshape(-1, dim)
        table = coordinates.tabulate(1, flat)[:, :, :, 0].reshape(dim + 1, len(cell), len(X), coordinates.dim)
        J = np.einsum("anqm,nmx->nqxa", table[1:], nodes[cell])
        size = np.abs(np.linalg.det(corner[:, 1:] - corner[:, :1]))
        weights = w * np.abs(np.linalg.det(J)) * size[:, None]
        if weight is not None:
            weights = weights * weight(np.einsum("nqm,nmx->nqx", table[0], nodes[cell]))
        phi = gen.V.element.basix_element.tabulate(0, flat)[0, :, :, 0].reshape(len(cell), len(X), -1)
        local = np.einsum("nq,nqi->ni", weights, phi)
        for function, inside in zip(functions, share[part].T, strict=True):
            np.add.at(function.x.array, gen.V.dofmap.list[cell], inside[:, None] * local)
    for function in functions:
        function.x.scatter_reverse(la.InsertMode.add)
    return [to_vector(gen, function) for function in functions]


def ball_load(
    gen: Generator, center: Array, radius: float, weight: Callable[[Array], Array] | None = None
) -> tuple[PETSc.Vec, PETSc.Vec]:
    """The load of a ball, and what the last halving of the pieces changed in it (collective).

    The leading error, of second order, is removed by Richardson extrapolation.
    """
    mesh = gen.domain.mesh
    extent = largest(mesh.comm, np.ptp(owned_nodes(mesh), axis=1))
    levels = max(2, int(np.ceil(np.log2(max(extent / radius, 1e-300)))) + _FINENESS[gen.domain.dim])
    curved = _compat.coordinate_map(mesh).degree > 1

    def classify(x: Array) -> tuple[Array, Array]:
        y = x - center
        corners = y.shape[1]
        squares, middle = (y**2).sum(axis=2), y.mean(axis=1)
        size = np.sqrt(((y - middle[:, None]) ** 2).sum(axis=2).max(axis=1))
        inside = np.sqrt(squares.max(axis=1)) + (0.1 * size if curved else 0.0) <= radius
        outside = np.linalg.norm(middle, axis=1) - (1.2 if curved else 1.0) * size >= radius
        # |y|² − r² by the linear function with its corner values, moved to have the same mean
        mean = (squares.sum(axis=1) + (y.sum(axis=1) ** 2).sum(axis=1)) / (corners * (corners + 1))
        share = share_below(squares + (mean - squares.mean(axis=1))[:, None] - radius**2)
        return np.where(inside, 1.0, np.where(outside, 0.0, share))[:, None], ~(inside | outside)

    (coarse,), (fine,) = (loads(gen, classify, n, weight) for n in (levels - 1, levels))
    coarse.aypx(-1.0, fine)  # fine less coarse
    fine.axpy(1 / 3, coarse)
    return fine, coarse


def share_below(g: Array) -> Array:
    """Share of a simplex where the linear function with corner values ``g``, shape (n, d + 1), is negative."""
    g = np.sort(g, axis=1)
    negative, corners = (g < 0).sum(axis=1), g.shape[1]
    share = np.where(negative == corners, 1.0, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest, highest = g[:, :1], g[:, -1:]
        share = np.where(negative == corners - 1, 1 - np.prod(highest / (highest - g[:, :-1]), axis=1), share)
        share = np.where(negative == 1, np.prod(lowest / (lowest - g[:, 1:]), axis=1), share)  # a corner is cut off
        if corners == 4:  # two corners against two: a wedge, as three tetrahedra
            ac, ad, bc, bd = (g[:, i] / (g[:, i] - g[:, j]) for i, j in ((0, 2), (0, 3), (1, 2), (1, 3)))
            share = np.where(negative == 2, ac * ad + ac * bd * (1 - ad) + (1 - ac) * bc * bd, share)
    return share
