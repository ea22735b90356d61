"""Lowest passes of a landscape on a mesh: minimax paths from cell to cell."""

from bisect import bisect_left

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ...discretisation.solution import locate
from ...domains.domain import Domain
from ..sampling import maxima


class Passes:
    """Cells of all ranks joined through their facets, and one further node, the last one: the exit.

    A path from cell to cell is as high as the largest of its cells' levels; the pass between two nodes is the lowest
    such height.  With levels that are infima of f over the cells, no path in space crosses lower.  Made of the levels
    of this rank's own cells, and (own cell, level) of each facet through which one can leave (collective).
    """

    def __init__(self, domain: Domain, level: np.ndarray, exits: tuple[np.ndarray, np.ndarray]):
        self._domain, mesh, d, n = domain, domain.mesh, domain.dim, len(level)
        self._first = int(domain.comm.exscan(n) or 0)
        self._own = slice(self._first, self._first + n)
        mesh.topology.create_connectivity(d, d - 1)
        facets = mesh.topology.connectivity(d, d - 1).array[: n * (d + 1)].astype(np.int32)
        numbers = mesh.topology.index_map(d - 1).local_to_global(facets)
        pieces = domain.comm.allgather((level, numbers, exits[0] + self._first, exits[1]))
        self.level, shared, leaving, height = (np.concatenate(p) for p in zip(*pieces, strict=True))
        order = np.argsort(shared, kind="stable")
        twice = np.flatnonzero(shared[order][1:] == shared[order][:-1])
        a, b = order[twice] // (d + 1), order[twice + 1] // (d + 1)
        self._a = np.append(a, leaving)
        self._b = np.append(b, np.full(len(leaving), len(self.level)))
        self._height = np.append(np.maximum(*self.level[[a, b]]), np.maximum(self.level[leaving], height))

    def number(self, x: np.ndarray) -> np.ndarray:
        """One cell for each of several points in the mesh, shape (n, d) (collective)."""
        index, cells = locate(self._domain.mesh, x)
        mine = np.full(len(x), np.inf)
        np.minimum.at(mine, index, cells + self._first)
        return (-maxima(self._domain.comm, -mine)).astype(int)

    def labels(self, height: float) -> np.ndarray:
        """Which part each cell and, last, the exit belong to, where paths no higher than ``height`` join them."""
        low, n = self._height <= height, len(self.level) + 1
        graph = coo_matrix((np.ones(low.sum()), (self._a[low], self._b[low])), shape=(n, n))
        label: np.ndarray = connected_components(graph, directed=False)[1]
        return label

    def below(self, cell: int, height: float) -> np.ndarray:
        """Which of this rank's owned cells are joined to ``cell`` through cells below ``height``, as a mask."""
        label = self.labels(np.nextafter(height, -np.inf))
        return label[self._own] == label[cell]

    def lowest(self, a: int, b: int) -> tuple[float, int]:
        """Height of the pass between two nodes, −1 being the exit, and the cell that it is; inf if no path leads."""
        if a == b:
            return -np.inf, a
        heights = np.unique(self._height)

        def joined(height: float) -> bool:
            label = self.labels(height)
            return bool(label[a] == label[b])

        first = bisect_left(heights, True, key=joined)
        if first == len(heights):
            return np.inf, -1
        label = self.labels(np.nextafter(heights[first], -np.inf))
        left, right = label[self._a] == label[a], label[self._b] == label[a]
        edge = np.flatnonzero((self._height == heights[first]) & (left != right))[0]
        level = np.append(self.level, -np.inf)
        return float(heights[first]), int(max(self._a[edge], self._b[edge], key=lambda k: level[k]))
