"""Metastable wells of a potential on the mesh: local minima that are deep compared with the noise."""

from typing import Any

import numpy as np
import numpy.typing as npt
from dolfinx import fem

from .generator import Generator

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def find_wells(gen: Generator, depth: float) -> Integers:
    """Global degrees of freedom at the minima of U, the deepest first, the same on all ranks (collective).

    Besides the deepest, those minima over the mesh's vertices from which one must climb by at least ``depth`` to get to
    a lower one or to an absorbing part.  The graph of vertices and edges is gathered on rank 0: 60 bytes an edge.
    """
    comm = gen.domain.comm
    parts = comm.gather(_edges(gen))
    wells = None
    if parts is not None:
        ends, U, absorbs = (np.concatenate(column) for column in zip(*parts, strict=True))
        wells = _deep_minima(ends, U, absorbs, depth)
    return np.asarray(comm.bcast(wells))


def _edges(gen: Generator) -> tuple[Integers, Floats, npt.NDArray[np.bool_]]:
    """Edges of this rank's cells: global ends (n, 2), potential (n, 2), whether an end absorbs (n, 2)."""
    V, mesh = gen.V, gen.domain.mesh
    U = gen.nodal_potential()
    absorbs = np.zeros(len(U), dtype=bool)
    absorbs[fem.locate_dofs_topological(V, mesh.topology.dim - 1, gen.absorbing_facets())] = True
    corners = [V.dofmap.dof_layout.entity_dofs(0, i)[0] for i in range(mesh.topology.dim + 1)]
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    cells = np.arange(owned) if gen.weak.cells is None else gen.weak.cells.find(1)
    vertices = V.dofmap.list[cells[cells < owned]][:, corners]
    pairs = np.vstack([vertices[:, [i, j]] for j in range(len(corners)) for i in range(j)])
    ends = V.dofmap.index_map.local_to_global(pairs.ravel().astype(np.int32)).reshape(-1, 2)
    return ends, U[pairs], absorbs[pairs]


def _deep_minima(ends: Integers, U: Floats, absorbs: npt.NDArray[np.bool_], depth: float) -> Integers:
    nodes, index = np.unique(ends, return_inverse=True)
    edges = index.reshape(-1, 2) + 1  # node 0 is the exit
    height = np.zeros(len(nodes) + 1)
    height[edges] = U
    height[0] = -np.inf
    edges[absorbs] = 0
    edges = np.unique(np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1), axis=0)
    basin = _basins(edges, height)
    inside = np.setdiff1d(edges, [0])  # what absorbs is no node any more
    if not len(inside):
        inside = np.array([1])
    deepest = int(inside[np.argmin(height[inside])])
    wells = [deepest, *(m for m in _persistent(edges, height, basin, depth) if m != deepest)]
    return nodes[np.array(sorted(wells, key=lambda m: height[m])) - 1]


def _basins(edges: Integers, height: Floats) -> Integers:
    """For each node the minimum that steepest descent along edges leads to."""
    order = np.lexsort((np.arange(len(height)), height))
    rank = np.empty(len(height), dtype=np.int64)
    rank[order] = np.arange(len(height))
    lowest = rank.copy()
    for a, b in (edges.T, edges.T[::-1]):
        np.minimum.at(lowest, a, rank[b])
    target = order[lowest]
    while not np.array_equal(further := target[target], target):
        target = further
    return target


def _persistent(edges: Integers, height: Floats, basin: Integers, depth: float) -> list[int]:
    """Minima that must climb by ``depth`` or more to where it is deeper, by merging basins from low passes to high."""
    pairs = np.sort(basin[edges], axis=1)
    between = pairs[:, 0] != pairs[:, 1]
    pairs, passes = pairs[between], height[edges[between]].max(axis=1)
    order = np.lexsort((passes, pairs[:, 1], pairs[:, 0]))
    pairs, passes = pairs[order], passes[order]
    first = np.ones(len(pairs), dtype=bool)
    first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    pairs, passes = pairs[first], passes[first]
    parent: dict[int, int] = {}

    def root(m: int) -> int:
        while (p := parent.get(m, m)) != m:
            parent[m] = m = parent.get(p, p)
        return m

    deep = []
    for i in np.argsort(passes, kind="stable"):  # basins are few: hundreds on rough landscapes
        low, high = sorted((root(int(pairs[i, 0])), root(int(pairs[i, 1]))), key=lambda m: height[m])
        if low != high:
            parent[high] = low
            if passes[i] - height[high] >= depth:
                deep.append(high)
    return deep


def eliminate(between: Floats, leaving: Floats, rhs: Floats) -> Any:
    """Solve Σ_j between_ij (c_i − c_j) + leaving_i c_i = rhs_i without a subtraction.

    Gaussian elimination of states, which keeps the relative accuracy of every conductance (Grassmann, Taksar, Heyman,
    Oper. Res. 33, 1985).
    """
    C, exits, b = between.copy(), leaving.copy(), rhs.copy()
    np.fill_diagonal(C, 0.0)
    n = len(b)
    total = np.zeros(n)
    for k in range(n - 1, -1, -1):
        total[k] = exits[k] + C[k, :k].sum()
        share = C[:k, k] / total[k]
        C[:k, :k] += np.outer(share, C[k, :k])
        exits[:k] += share * exits[k]
        b[:k] += share * b[k]
    c = np.zeros(n)
    for k in range(n):
        c[k] = (b[k] + C[k, :k] @ c[:k]) / total[k]
    return c
