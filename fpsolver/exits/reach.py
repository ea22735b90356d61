"""Where the process can go: the control graph on cells, and the parts of the domain that it never leaves.

An edge leads from a cell to its neighbour if the process can cross the facet between them: by diffusion, n·Dn > 0,
both ways; by drift alone along β·n.  Where drift presses it on a wall it slides on (:mod:`._sliding`).  By the support
theorem of Stroock and Varadhan (1972) these are the cells that paths can reach, as far as the mesh resolves it: a
barrier without diffusion counts only where facets follow it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from .. import _compat
from .._sample import neighbours, volumes
from ..discretisation.generator import Generator, derived
from ._sliding import Sides, sliding


@dataclass(frozen=True)
class ClosedClass:
    """A part of the domain that the process never leaves once it is there."""

    volume: float  #: of its cells
    lower: tuple[float, ...]  #: corner of its bounding box
    upper: tuple[float, ...]  #: the opposite corner

    def __str__(self) -> str:
        box = " x ".join(f"[{a:.6g}, {b:.6g}]" for a, b in zip(self.lower, self.upper, strict=True))
        return f"{box} (volume {self.volume:.3g})"


@dataclass(frozen=True)
class Reach:
    """What the control graph says."""

    closed: tuple[ClosedClass, ...]  #: the closed classes, the largest first
    uncertain: float  #: volume of the cells from which a closed class can be reached: exit is not certain there
    hopeless: float  #: volume of the cells from which no absorbing part can be reached at all
    volume: float  #: of the domain

    def reason(self) -> str:
        """Why exit is not certain, in words."""
        shown = "; ".join(str(c) for c in self.closed[:3])
        more = f" and {len(self.closed) - 3} more" if len(self.closed) > 3 else ""
        return (
            f"the process stays for ever in {shown}{more}, whose walls neither its noise nor its drift crosses "
            f"outwards. It may get there from a volume of {self.uncertain:.3g} of {self.volume:.3g}, and from "
            f"{self.hopeless:.3g} it cannot leave at all"
        )


def closed_classes(gen: Generator, killed: npt.NDArray[np.bool_] | None = None) -> Reach:
    """The closed classes of the control graph (collective; gathered on rank 0, some 50 bytes a facet).

    ``killed`` tells this rank's own cells in which the process may end.
    """
    comm = gen.domain.comm
    edges, leaves, *cells = _graph(gen)
    if killed is not None:
        first = gen.domain.mesh.topology.index_map(gen.domain.dim).local_range[0]
        leaves = np.concatenate([leaves, first + np.flatnonzero(killed)])
    parts = comm.gather((edges, leaves, *cells))
    answer = None
    if parts is not None:
        answer = _analyse(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return comm.bcast(answer)


@derived
def _graph(gen: Generator) -> tuple[npt.NDArray[Any], ...]:
    """This rank's edges (from, to), nodes that exits touch; and of its cells number, volume and bounding box."""
    mesh, dim = gen.domain.mesh, gen.domain.dim
    index = mesh.topology.index_map(dim)
    owned, first = index.size_local, index.local_range[0]
    numbers = np.concatenate([np.arange(first, first + owned), index.ghosts])
    lives = np.full(len(numbers), gen.weak.cells is None)
    if gen.weak.cells is not None:
        lives[gen.weak.cells.indices] = True
    cells, local = neighbours(mesh)
    inner = (cells >= 0).all(axis=1) & lives[cells].all(axis=1)
    cells, local = cells[inner], local[inner]
    here, there = (crossing(gen, np.stack([cells[:, s], local[:, s]], axis=1)) for s in range(2))
    ends, diffuses = numbers[cells], here[0] & there[0]
    edges = np.concatenate([ends[diffuses | here[1]], ends[diffuses | there[1]][:, ::-1]])
    further, corners = sliding(gen, lives)
    edges, leaves = np.concatenate([edges, further]), np.concatenate([numbers[_exits(gen, lives)], corners])
    nodes = mesh.geometry.x[_compat.geometry_dofmap(mesh)[:owned]][..., :dim]
    mine = (numbers[:owned], volumes(mesh), nodes.min(axis=1), nodes.max(axis=1))
    return edges, leaves, *(column[lives[:owned]] for column in mine)


def _exits(gen: Generator, lives: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Local cells that the process can leave through an absorbing facet."""
    cells, local = neighbours(gen.domain.mesh, gen.territory.stops)
    side = np.where((cells[:, 0] >= 0) & lives[cells[:, 0]], 0, 1)  # a region's facet has cells on both sides
    rows = np.arange(len(cells))
    sides = np.stack([cells[rows, side], local[rows, side]], axis=1)
    return sides[np.logical_or(*crossing(gen, sides)), 0]


def crossing(gen: Generator, sides: npt.NDArray[Any]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Whether the process diffuses across facets, and whether its drift leads out there, seen from (cell, facet)."""
    found = Sides.of(gen, sides)
    return np.asarray(found.diffuses.any(axis=1)), np.asarray(found.drifts.any(axis=1))


def _analyse(
    edges: npt.NDArray[Any], leaves: npt.NDArray[Any], cells: npt.NDArray[Any], volume: npt.NDArray[Any],
    low: npt.NDArray[Any], high: npt.NDArray[Any],
) -> Reach:  # fmt: skip
    others = np.setdiff1d(np.concatenate([edges.ravel(), leaves]), cells)  # vertices and edges at walls
    cells, volume = np.concatenate([cells, others]), np.concatenate([volume, np.zeros(len(others))])
    low, high = (np.pad(x, ((0, len(others)), (0, 0)), constant_values=v) for x, v in ((low, np.inf), (high, -np.inf)))
    n, order = len(cells), np.argsort(cells)
    cells, volume, low, high = cells[order], volume[order], low[order], high[order]
    tail, head = np.searchsorted(cells, edges).T
    exits = np.unique(np.searchsorted(cells, leaves))
    # node n is the outside
    rows, columns = np.concatenate([tail, exits]), np.concatenate([head, np.full(len(exits), n)])
    graph = sparse.csr_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(n + 1, n + 1))
    count, label = csgraph.connected_components(graph, connection="strong")
    closed = np.ones(count, dtype=bool)
    closed[label[rows[label[rows] != label[columns]]]] = False
    closed[label[n]] = False
    trapped = closed[label[:n]]
    classes = []
    for m in (label[:n] == c for c in np.unique(label[:n][trapped])):
        corners = (tuple(float(v) for v in x) for x in (low[m].min(axis=0), high[m].max(axis=0)))
        classes.append(ClosedClass(float(volume[m].sum()), *corners))
    classes.sort(key=lambda c: -c.volume)
    traps = np.flatnonzero(trapped)
    uncertain = _ancestors(np.append(rows, traps), np.append(columns, np.full(len(traps), n + 1)), n + 1)[:n]
    saved = _ancestors(rows, columns, n)[:n]
    return Reach(tuple(classes), float(volume[uncertain].sum()), float(volume[~saved].sum()), float(volume.sum()))


def _ancestors(tails: npt.NDArray[Any], heads: npt.NDArray[Any], target: int) -> npt.NDArray[np.bool_]:
    """Nodes 0, ..., target from which the target can be reached, itself among them."""
    backwards = sparse.csr_matrix((np.ones(len(tails), np.int8), (heads, tails)), shape=(target + 1, target + 1))
    found = np.zeros(target + 1, dtype=bool)
    found[csgraph.breadth_first_order(backwards, target, return_predecessors=False)] = True
    return found
