"""Metastable wells of a potential on the mesh: local minima that are deep compared with the noise."""

from typing import Any

import numpy as np
import numpy.typing as npt
from dolfinx import fem

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def find_wells(
    V: fem.FunctionSpace, U: Floats, exits: npt.ArrayLike, cells: Any = None
) -> list[tuple[float, int, float]]:
    """Minima of U over the vertices: value, global number, climb to where it is deeper or to an exit (collective)."""
    comm = V.mesh.comm
    parts = comm.gather(_edges(V, U, exits, cells))
    found: list[tuple[float, int, float]] | None = None
    if parts is not None:
        nodes, height, climbs = _climbs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        inside = np.flatnonzero(np.isfinite(height))
        climbs.setdefault(int(inside[np.argmin(height[inside])]), 0.0)  # the deepest, where nothing absorbs
        found = sorted((float(height[m]), int(nodes[m]), climb) for m, climb in climbs.items())
    return comm.bcast(found)


def _edges(V: fem.FunctionSpace, U: Floats, exits: npt.ArrayLike, cells: Any) -> tuple[Integers, Floats, Any]:
    """Edges of this rank's cells: global ends (n, 2), potential (n, 2), whether an end absorbs (n, 2)."""
    topology = V.mesh.topology
    absorbs = np.zeros(len(U), dtype=bool)
    absorbs[fem.locate_dofs_topological(V, topology.dim - 1, np.asarray(exits, dtype=np.int32))] = True
    corners = [V.dofmap.dof_layout.entity_dofs(0, i)[0] for i in range(topology.dim + 1)]
    owned = topology.index_map(topology.dim).size_local
    cells = np.arange(owned) if cells is None else cells
    vertices = V.dofmap.list[cells[cells < owned]][:, corners]
    pairs = np.vstack([vertices[:, [i, j]] for j in range(len(corners)) for i in range(j)])
    ends = V.dofmap.index_map.local_to_global(pairs.ravel().astype(np.int32)).reshape(-1, 2)
    return ends, U[pairs], absorbs[pairs]


def _climbs(ends: Integers, U: Floats, absorbs: npt.NDArray[np.bool_]) -> tuple[Integers, Floats, dict[int, float]]:
    """Nodes, their potential (−∞ at node 0, the exit; ∞ where another absorbs) and how far minima must climb."""
    # whoever leaves climbs to the node that absorbs: on coarse meshes much of the barrier lies in the last edge
    numbers, index = np.unique(ends, return_inverse=True)
    edges: Integers = index.reshape(-1, 2) + 1
    height = np.full(len(numbers) + 1, np.inf)
    height[edges[~absorbs]] = U[~absorbs]
    if not np.isfinite(height).any():
        height[edges] = U  # every node absorbs: no matter
    height[0] = -np.inf
    edges[absorbs] = 0
    apart = edges[:, 0] != edges[:, 1]
    links, passes = np.sort(edges[apart], axis=1), U[apart].max(axis=1)
    climbs = _persistence(links, height, passes, _basins(links[links[:, 0] > 0], height))
    return np.concatenate([[-1], numbers]), height, climbs


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


def _persistence(edges: Integers, height: Floats, passes: Floats, basin: Integers) -> dict[int, float]:
    """How far each minimum must climb to where it is deeper, by merging basins from low passes to high."""
    pairs = np.sort(basin[edges], axis=1)
    between = pairs[:, 0] != pairs[:, 1]
    order = np.flatnonzero(between)[np.argsort(passes[between], kind="stable")]
    lowest = np.sort(np.unique(pairs[order], axis=0, return_index=True)[1])  # pass between two basins
    parent: dict[int, int] = {}

    def root(m: int) -> int:
        while (p := parent.get(m, m)) != m:
            parent[m] = m = parent.get(p, p)
        return m

    climbs = {}
    for i in order[lowest]:  # basins are few: hundreds on rough landscapes
        low, high = sorted((root(int(pairs[i, 0])), root(int(pairs[i, 1]))), key=lambda m: height[m])
        if low != high:
            parent[high] = low
            climbs[high] = float(passes[i] - height[high])
    return climbs


def eliminate(between: Floats, leaving: Floats, rhs: Floats) -> Floats:
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
