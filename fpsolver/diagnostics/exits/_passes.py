"""Lowest passes of a landscape on a mesh: minimax paths from cell to cell, on rank 0."""

from bisect import bisect_left

from mpi4py import MPI

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ...discretisation.solution import locate
from ...domains.domain import Domain


class Passes:
    """Cells joined through their facets, and one further node: the exit.

    A path from cell to cell is as high as the largest of its cells' levels; the pass between two nodes is the lowest
    such height.  With levels that are infima of f over the cells, no path in space crosses lower.

    Args:
        domain: whose cells.
        level: level of each owned cell of this rank.
        exits: (owned cell, level) of each facet through which one can leave.

    Collective, as all methods; cells are numbered over all ranks by :meth:`number`.
    """

    def __init__(self, domain: Domain, level: np.ndarray, exits: tuple[np.ndarray, np.ndarray]):
        self.comm, mesh, d = domain.comm, domain.mesh, domain.dim
        self._mesh = mesh
        self._owned = n = mesh.topology.index_map(d).size_local
        self._first = int(self.comm.exscan(n) or 0)
        mesh.topology.create_connectivity(d, d - 1)
        facets = mesh.topology.connectivity(d, d - 1).array[: n * (d + 1)].astype(np.int32)
        numbers = mesh.topology.index_map(d - 1).local_to_global(facets)
        pieces = self.comm.gather((level, numbers.reshape(n, d + 1), exits[0] + self._first, exits[1]), root=0)
        if pieces is None:
            return
        self._level = np.concatenate([p[0] for p in pieces])
        shared = np.concatenate([p[1] for p in pieces]).ravel()
        leaving, height = (np.concatenate([p[k] for p in pieces]) for k in (2, 3))
        order = np.argsort(shared, kind="stable")
        twice = np.flatnonzero(shared[order][1:] == shared[order][:-1])
        a, b = order[twice] // (d + 1), order[twice + 1] // (d + 1)
        self._a = np.concatenate([a, leaving])
        self._b = np.concatenate([b, np.full(len(leaving), len(self._level))])
        heights = np.maximum(self._level[a], self._level[b]), np.maximum(self._level[leaving], height)
        self._height = np.concatenate(heights)

    def number(self, x: np.ndarray) -> np.ndarray:
        """One cell for each of several points in the mesh, shape (n, d)."""
        index, cells = locate(self._mesh, x)
        mine = np.full(len(x), np.iinfo(np.int64).max)
        np.minimum.at(mine, index, cells + self._first)
        result = np.empty_like(mine)
        self.comm.Allreduce(mine, result, op=MPI.MIN)
        return result

    def labels(self, height: float) -> np.ndarray:
        """Which part each cell and, last, the exit belong to, where paths no higher than ``height`` join them."""
        return self.comm.bcast(self._labels(height) if self.comm.rank == 0 else None, root=0)

    def below(self, cell: int, height: float) -> np.ndarray:
        """Which of this rank's owned cells are joined to ``cell`` through cells below ``height``, as a mask."""
        label = self.labels(np.nextafter(height, -np.inf))
        return label[self._first : self._first + self._owned] == label[cell]

    def lowest(self, a: int, b: int) -> tuple[float, int]:
        """Height of the pass between two cells, −1 being the exit, and the cell that it is; inf if no path leads."""
        return self.comm.bcast(self._lowest(a, b) if self.comm.rank == 0 else None, root=0)

    def _labels(self, height: float) -> np.ndarray:
        low, n = self._height <= height, len(self._level) + 1
        graph = coo_matrix((np.ones(low.sum()), (self._a[low], self._b[low])), shape=(n, n))
        label: np.ndarray = connected_components(graph, directed=False)[1]
        return label

    def _lowest(self, a: int, b: int) -> tuple[float, int]:
        if a == b:
            return -np.inf, a
        heights = np.unique(self._height)

        def joined(height: float) -> bool:
            label = self._labels(height)
            return bool(label[a] == label[b])

        first = bisect_left(heights, True, key=joined)
        if first == len(heights):
            return np.inf, -1
        label = self._labels(np.nextafter(heights[first], -np.inf))
        left, right = label[self._a] == label[a], label[self._b] == label[a]
        edge = np.flatnonzero((self._height == heights[first]) & (left != right))[0]
        level = np.append(self._level, -np.inf)
        return float(heights[first]), int(max(self._a[edge], self._b[edge], key=lambda k: level[k]))
