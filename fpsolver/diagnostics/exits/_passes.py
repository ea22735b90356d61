"""Lowest passes of a landscape on a mesh: minimax paths from cell to cell, on rank 0."""

from typing import Any

from mpi4py import MPI

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

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
        n = mesh.topology.index_map(d).size_local
        self._owned = n
        self._first = int(self.comm.exscan(n) or 0)
        mesh.topology.create_connectivity(d, d - 1)
        facets = mesh.topology.connectivity(d, d - 1).array[: n * (d + 1)].astype(np.int32)
        numbers = mesh.topology.index_map(d - 1).local_to_global(facets)
        pieces = self.comm.gather((level, numbers.reshape(n, d + 1), exits[0] + self._first, exits[1]), root=0)
        if pieces is None:
            return
        self._level = np.concatenate([p[0] for p in pieces])
        shared = np.concatenate([p[1] for p in pieces]).ravel()
        self._join(
            shared,
            np.repeat(np.arange(len(self._level)), d + 1),
            *(np.concatenate([p[k] for p in pieces]) for k in (2, 3)),
        )

    def _join(self, facet: np.ndarray, cell: np.ndarray, leaving: np.ndarray, height: np.ndarray) -> None:
        order = np.argsort(facet, kind="stable")
        twice = np.flatnonzero(facet[order][1:] == facet[order][:-1])
        a, b = cell[order][twice], cell[order][twice + 1]
        self._exit = len(self._level)
        self._a = np.concatenate([a, leaving])
        self._b = np.concatenate([b, np.full(len(leaving), self._exit)])
        self._height = np.concatenate(
            [np.maximum(self._level[a], self._level[b]), np.maximum(self._level[leaving], height)]
        )

    def number(self, cells: np.ndarray, index: np.ndarray, points: int) -> np.ndarray:
        """One cell for each of several located points, from :func:`fpsolver.discretisation.solution.locate`'s pairs."""
        mine = np.full(points, np.iinfo(np.int64).max)
        np.minimum.at(mine, index, cells + self._first)
        result = np.empty_like(mine)
        self.comm.Allreduce(mine, result, op=MPI.MIN)
        return result

    def heights(self, root: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Height of the pass from ``root`` (by default the exit) to every cell and, last, to the exit; and where.

        Returns:
            Heights (cells + 1,), inf where no path leads, and the cell that is the pass (−1 for none).
        """
        return self.comm.bcast(self._minimax(root) if self.comm.rank == 0 else None, root=0)

    def _minimax(self, root: int | None) -> tuple[np.ndarray, np.ndarray]:
        n = self._exit + 1
        root = self._exit if root is None else root
        ranks = np.unique(self._height, return_inverse=True)[1] + 1.0
        # several exit facets of one cell are one edge, the lowest of them
        order = np.argsort(ranks, kind="stable")
        pairs = np.minimum(self._a, self._b) * np.int64(n) + np.maximum(self._a, self._b)
        keep = order[np.unique(pairs[order], return_index=True)[1]]
        graph = coo_matrix((ranks[keep], (self._a[keep], self._b[keep])), shape=(n, n)).tocsr()
        tree = minimum_spanning_tree(graph)
        reached, found = breadth_first_order(tree, root, directed=False)
        rank: np.ndarray = np.zeros(n)
        parent, up = np.arange(n), reached[1:]
        parent[up] = found[up]
        rank[up] = np.asarray((tree + tree.T).tocsr()[up, parent[up]]).ravel()
        level = np.append(self._level, -np.inf)
        where = np.where(level > level[parent], np.arange(n), parent)
        for _ in range(int(np.ceil(np.log2(n))) + 1):  # pointer doubling: each step looks twice as far up the tree
            higher = rank[parent] > rank
            rank, where = np.where(higher, rank[parent], rank), np.where(higher, where[parent], where)
            parent = parent[parent]
        height = np.full(n, np.inf)
        known = rank > 0
        height[known] = np.unique(self._height)[rank[known].astype(int) - 1]
        height[root] = -np.inf
        return height, np.where(known, where, -1)

    def component(self, cell: int, height: float) -> np.ndarray:
        """Which of this rank's owned cells are joined to ``cell`` through cells below ``height``, as a mask."""
        mask = None
        if self.comm.rank == 0:
            below = self._height < height
            n = self._exit + 1
            graph = coo_matrix((np.ones(below.sum()), (self._a[below], self._b[below])), shape=(n, n))
            label = connected_components(graph, directed=False)[1]
            mask = label == label[cell]
        mask = self.comm.bcast(mask, root=0)
        return mask[self._first : self._first + self._owned]


def owners(domain: Domain, facets: np.ndarray) -> np.ndarray:
    """The local cell of each local boundary facet."""
    mesh, d = domain.mesh, domain.dim
    mesh.topology.create_connectivity(d - 1, d)
    to_cell: Any = mesh.topology.connectivity(d - 1, d)
    return to_cell.array[to_cell.offsets[facets]] if len(facets) else np.zeros(0, dtype=np.int32)
