"""Distributed meshes of simplices: what suits a process, boxes, meshes from arrays and from our own files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpi4py import MPI

import basix.ufl
import numpy as np
import ufl
from dolfinx import cpp, default_real_type, io
from dolfinx import mesh as dmesh

from .. import _compat
from .._arguments import check_choice, check_integer, check_numbers, expect
from .._errors import on_root
from .._log import logger
from . import _refine
from ._arrays import SHAPES, Array, RawMesh, equal_rows
from ._refine import ends_of
from .regions import Facets, find_boundary

GHOSTS = dmesh.GhostMode.shared_facet
SIDES = {1: ("left", "right"), 2: ("left", "right", "bottom", "top")}
SIDES[3] = ("left", "right", "front", "back", "bottom", "top")
DIAGONALS = ("crossed", "right", "left", "left_right", "right_left")

Parts = dict[str, Facets]


class Made(NamedTuple):
    """What a domain is made of: facets of its parts (None: one part), cells of its regions, ends of its periods."""

    mesh: dmesh.Mesh
    parts: Parts | None
    regions: Parts
    periods: Array | None


def check_mesh(mesh: dmesh.Mesh) -> None:
    """Refuse a mesh on which a process cannot live (collective)."""
    topology, dim = mesh.topology, mesh.topology.dim
    shape = topology.cell_name()
    if shape not in SHAPES[1:]:
        raise ValueError(f"the mesh has cells of type {shape}; expected interval, triangle or tetrahedron")
    if mesh.geometry.dim != dim:
        raise ValueError(
            f"the mesh has {shape} cells in {mesh.geometry.dim} dimensions; expected {dim}, because a process needs as "
            "many coordinates as its domain has dimensions"
        )
    number = topology.index_map(dim).size_global
    expect("the number of cells", number, "one or more", number)
    topology.create_connectivity(dim - 1, dim)
    cut = mesh.comm.allreduce(len(topology.interprocess_facets()))
    if cut and mesh.comm.allreduce(topology.index_map(dim).num_ghosts) == 0:
        raise ValueError(
            "the mesh has no ghost cells, which integrals over interior facets need: create it with "
            "GhostMode.shared_facet, in create_mesh by partitioner=create_cell_partitioner(GhostMode.shared_facet)"
        )


def box(kind: str, comm: MPI.Comm, low: Any, high: Any, n: Any, periodic: Any, diagonal: str = "crossed") -> Made:
    """An interval, a rectangle or a box with its sides (collective)."""
    what, dim = f"Domain.{kind}", ("interval", "rectangle", "box").index(kind) + 1
    a, b = check_numbers(f"{what}: the lower corner", low, dim), check_numbers(f"{what}: the upper corner", high, dim)
    expect(f"{what}: the upper corner", high, f"one beyond the lower, {low!r},", all(np.less(a, b)))
    check_numbers(f"{what}: n", n, dim)
    cells = [check_integer(f"{what}: n", k) for k in n]
    check_choice(f"{what}: diagonal", diagonal, DIAGONALS)
    if dim == 1:
        mesh = dmesh.create_interval(comm, cells[0], [a[0], b[0]], ghost_mode=GHOSTS, dtype=default_real_type)
    elif dim == 2:
        cut = dmesh.DiagonalType.__members__[diagonal]
        mesh = dmesh.create_rectangle(comm, [a, b], cells, ghost_mode=GHOSTS, diagonal=cut)
    else:
        mesh = dmesh.create_box(comm, [a, b], cells, ghost_mode=GHOSTS)
    # nodes that rounding has left beside the ends are put on them: low + n (high − low)/n is not always high
    x, ends = mesh.geometry.x, [(i, end) for i, both in enumerate(zip(a, b, strict=True)) for end in both]
    for i, end in ends:
        x[np.abs(x[:, i] - end) <= 1e-14 * (abs(a[i]) + abs(b[i])), i] = end
    boundary = find_boundary(mesh)
    on = [boundary.facets[(boundary.corners[:, :, i] == end).all(axis=1)] for i, end in ends]
    sides, given = dict(zip(SIDES[dim], on, strict=True)), np.asarray(periodic)
    good = given.dtype == bool and given.shape == (dim,)
    expect(f"{what}: periodic", periodic, f"{dim} of True or False", good)
    if not given.any():
        return Made(mesh, sides, {}, None)
    least = 3  # with fewer, two edges would have the same two ends
    expect(f"{what}: n", cells, f"at least {least} cells in periodic directions", min(np.array(cells)[given]) >= least)
    kept = {name: sides[name] for name, gone in zip(SIDES[dim], np.repeat(given, 2), strict=True) if not gone}
    periods = np.where(given[:, None], np.column_stack((a, b)), np.nan)
    return assemble(comm, _refine.refine(mesh, [], kept, {}, periods=periods))


def create_mesh(comm: MPI.Comm, cells: Array, x: Array, dim: int, degree: int, periods: Any = None) -> dmesh.Mesh:
    """A distributed mesh from the cells and nodes that each rank holds (collective)."""
    variant = basix.LagrangeVariant.equispaced
    element = basix.ufl.element("Lagrange", SHAPES[dim], degree, variant, shape=(dim,), dtype=default_real_type)
    partitioner = _compat.cell_partitioner(GHOSTS)
    if periods is not None:
        return _create_periodic(comm, cells, x, element, partitioner, periods)
    return dmesh.create_mesh(comm, cells=cells, x=x, e=element, partitioner=partitioner)


def distribute(comm: MPI.Comm, work: Callable[[], RawMesh | None]) -> Made:
    """A mesh of the arrays that ``work`` gives on rank 0 (collective)."""
    raw = on_root(comm, work)
    empty = comm.bcast(raw.empty() if raw else None, root=0)
    return assemble(comm, raw or empty)


def assemble(comm: MPI.Comm, share: RawMesh) -> Made:
    """A mesh of which each rank holds a share (collective)."""
    mesh = create_mesh(comm, share.cells, share.points, share.dim, share.degree, share.periods)
    boundary, parts, regions = find_boundary(mesh), {}, {}
    for name, facets in share.facets.items():
        vertices = np.concatenate(comm.allgather(facets))
        found = boundary.find(vertices)
        if missing := len(vertices) - comm.allreduce(len(found)):
            message = "%d of %d facets of the part %r are not on the boundary: left out"
            logger.warning(message, missing, len(vertices), name)
        if missing < len(vertices):
            parts[name] = found
    first = sum(comm.allgather(len(share.cells))[: comm.rank])
    for name, rows in share.groups.items():
        members = np.concatenate(comm.allgather(first + rows))
        regions[name] = np.flatnonzero(np.isin(mesh.topology.original_cell_index, members)).astype(np.int32)
    return Made(mesh, parts if share.facets else None, regions, share.periods)


def read_xdmf(path: Path, names: Sequence[str], comm: MPI.Comm) -> tuple[dmesh.Mesh, Parts]:
    """A file of :func:`fpsolver.io.write_domain`: bit i of a facet's tag says that it belongs to names[i]."""
    with io.XDMFFile(comm, str(path), "r") as file:
        shape, degree = file.read_cell_type(name="mesh")
        dim = SHAPES.index(getattr(shape, "name", shape))
        x = file.read_geometry_data(name="mesh")[:, :dim]
        mesh = create_mesh(comm, file.read_topology_data(name="mesh"), x, dim, degree)
        mesh.topology.create_connectivity(dim - 1, dim)
        tags = file.read_meshtags(mesh, name="parts")
    return mesh, {name: tags.indices[(tags.values >> i) & 1 == 1] for i, name in enumerate(names)}


def _create_periodic(comm: MPI.Comm, cells: Array, x: Array, element: Any, partitioner: Any, periods: Array) -> Any:
    """A mesh of straight cells on which opposite sides of a box are one (collective).

    DOLFINx makes cells, facets, ghosts and degrees of freedom from the topology alone, whose nodes are merged, so that
    every scheme sees a mesh without a boundary there; coordinates are looked up by cell, and each has nodes of its own.
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


def _merged(comm: MPI.Comm, x: Array, periods: Array) -> tuple[Array, Array]:
    """Numbers of all nodes on periodic sides, sorted, and the least number among the copies of each (collective)."""
    extent, offset = np.ptp(periods, axis=1), sum(comm.allgather(len(x))[: comm.rank])
    ends = ends_of(x, periods)
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
