"""Distributed meshes of simplices: what suits a process, meshes from arrays and from our own files."""

from collections.abc import Sequence
from pathlib import Path

from mpi4py import MPI

import basix.ufl
import numpy as np
import numpy.typing as npt
from dolfinx import default_real_type, io
from dolfinx import mesh as dmesh

from .. import _compat
from . import _periodic
from ._arrays import SHAPES
from ._parts import Facets, find_boundary

GHOSTS = dmesh.GhostMode.shared_facet


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
    if topology.index_map(dim).size_global == 0:
        raise ValueError("the mesh has no cells")
    topology.create_connectivity(dim - 1, dim)
    cut = mesh.comm.allreduce(len(topology.interprocess_facets()))
    if cut and mesh.comm.allreduce(topology.index_map(dim).num_ghosts) == 0:
        raise ValueError(
            "the mesh has no ghost cells, which integrals over interior facets need: create it with "
            "GhostMode.shared_facet, in create_mesh by partitioner=create_cell_partitioner(GhostMode.shared_facet)"
        )


def sides(mesh: dmesh.Mesh, low: Sequence[float], high: Sequence[float], names: Sequence[str]) -> dict[str, Facets]:
    """Facets of the sides of a box, for each coordinate the lower and the upper one (collective).

    Nodes that rounding has left beside the ends are put on them: low + n (high − low)/n is not always high.
    """
    x, ends = mesh.geometry.x, list(zip(low, high, strict=True))
    for i, both in enumerate(ends):
        for end in both:
            x[np.abs(x[:, i] - end) <= 1e-14 * (abs(both[0]) + abs(both[1])), i] = end
    boundary = find_boundary(mesh)
    on = [(boundary.corners[:, :, i] == end).all(axis=1) for i, both in enumerate(ends) for end in both]
    return {name: boundary.facets[chosen] for name, chosen in zip(names, on, strict=True)}


def create_mesh(
    comm: MPI.Comm,
    cells: npt.NDArray[np.int64],
    x: npt.NDArray[np.float64],
    dim: int,
    degree: int,
    periods: npt.NDArray[np.float64] | None = None,
) -> dmesh.Mesh:
    """A distributed mesh from the cells and nodes that each rank holds (collective)."""
    element = basix.ufl.element(
        "Lagrange",
        SHAPES[dim],
        degree,
        lagrange_variant=basix.LagrangeVariant.equispaced,
        shape=(dim,),
        dtype=default_real_type,
    )
    partitioner = _compat.cell_partitioner(GHOSTS)
    if periods is not None:
        return _periodic.create(comm, cells, x, element, partitioner, periods)
    return dmesh.create_mesh(comm, cells=cells, x=x, e=element, partitioner=partitioner)


def read_xdmf(path: Path, names: Sequence[str], comm: MPI.Comm) -> tuple[dmesh.Mesh, dict[str, Facets]]:
    """A file of :func:`fpsolver.io.write_domain`: bit i of a facet's tag says that it belongs to names[i]."""
    with io.XDMFFile(comm, str(path), "r") as file:
        shape, degree = file.read_cell_type(name="mesh")
        dim = SHAPES.index(getattr(shape, "name", shape))
        x = file.read_geometry_data(name="mesh")[:, :dim]
        mesh = create_mesh(comm, file.read_topology_data(name="mesh"), x, dim, degree)
        mesh.topology.create_connectivity(dim - 1, dim)
        tags = file.read_meshtags(mesh, name="parts")
    return mesh, {name: tags.indices[(tags.values >> i) & 1 == 1] for i, name in enumerate(names)}
