"""Meshes on which opposite sides of a box are one: a topology of merged nodes, and a geometry that knows both copies.

DOLFINx makes cells, facets, ghosts and degrees of freedom from the topology alone, so that every scheme sees a mesh
without a boundary there; coordinates are looked up by cell, and each cell has nodes of its own.
"""

from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import cpp
from dolfinx import mesh as dmesh

from .. import _compat
from ._arrays import equal_rows

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
LEAST = 3
"""Cells in a periodic direction: with fewer, two edges would have the same two ends."""


def create(comm: MPI.Comm, cells: Ints, x: Floats, element: Any, partitioner: Any, periods: Floats) -> dmesh.Mesh:
    """A distributed mesh of straight cells; ``periods`` (dim, 2) are the ends of each coordinate, NaN: not periodic.

    Collective, from the cells and nodes that each rank holds.
    """
    number, first = _merged(comm, x, periods)
    copies = np.arange(max(cells.max(initial=-1), number.max(initial=-1)) + 1)
    copies[number] = first
    same = copies[cells]
    merged = dmesh.create_mesh(comm, cells=same, x=x, e=element, partitioner=partitioner)
    topology = merged.topology
    rows = np.concatenate(comm.allgather(cells))[np.asarray(topology.original_cell_index)]
    points = np.concatenate(comm.allgather(x))[rows.ravel()]
    index, n = topology.index_map(topology.dim), rows.shape[1]
    ghosts = (np.asarray(index.ghosts)[:, None] * n + np.arange(n)).ravel()
    nodes = _compat.index_map(comm, index.size_local * n, ghosts, np.repeat(index.owners, n))
    dofmap = np.arange(rows.size, dtype=np.int32).reshape(rows.shape)
    cmap = _compat.coordinate_map(merged)._cpp_object
    geometry = cpp.mesh.Geometry_float64(nodes, dofmap, cmap, points, rows.ravel())
    whole = cpp.mesh.Mesh_float64(comm, getattr(topology, "_cpp_object", topology), geometry)
    return dmesh.Mesh(whole, ufl.Mesh(element))


def _merged(comm: MPI.Comm, x: Floats, periods: Floats) -> tuple[Ints, Ints]:
    """Numbers of all nodes on periodic sides, sorted, and the least number among the copies of each (collective)."""
    extent, offset = np.ptp(periods, axis=1), sum(comm.allgather(len(x))[: comm.rank])
    ends = _at(x, periods)
    mine = np.flatnonzero(ends.any(axis=(1, 2)))
    number, place, ends = (np.concatenate(comm.allgather(a)) for a in (offset + mine, x[mine], ends[mine]))
    wrapped = np.where(ends[:, :, 1], periods[:, 0], place)
    scale = np.where(np.isfinite(extent), extent, max(float(np.nanmax(extent)), 1.0))
    which, _, _, count = equal_rows(np.rint(wrapped / (1e-7 * scale) + 0.37))
    lonely = count[which] != 2 ** ends.any(axis=2).sum(axis=1)
    if lonely.any():
        raise ValueError(
            f"the sides of a periodic domain do not match: the node at {place[lonely.argmax()].tolist()} has no copy "
            "on the other side; nodes of opposite sides that differ by the period alone were expected."
        )
    least = np.full(len(count), np.iinfo(np.int64).max)
    np.minimum.at(least, which, number)
    order = np.argsort(number)
    return number[order], least[which][order]


def on_upper_sides(x: Floats, periods: Floats | None) -> Ints:
    """Whether points (..., d) are on the upper side of each coordinate, if some are periodic, shape (..., d or 0)."""
    if periods is None:
        return np.zeros((*x.shape[:-1], 0), np.int64)
    return np.asarray(_at(x.reshape(-1, x.shape[-1]), periods)[:, :, 1], dtype=np.int64).reshape(x.shape)


def _at(x: Floats, periods: Floats) -> npt.NDArray[np.bool_]:
    """Whether points (n, d) are at the lower and the upper end of each periodic coordinate, shape (n, d, 2)."""
    return np.abs(x[:, :, None] - periods) <= 1e-9 * np.ptp(periods, axis=1)[:, None]  # not where these are NaN
