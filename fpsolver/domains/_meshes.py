"""What :class:`fpsolver.Domain` is made of: checked arguments, distributed meshes, and the facets of the boundary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi4py import MPI

import basix.ufl
import numpy as np
import numpy.typing as npt
from dolfinx import default_real_type, io
from dolfinx import mesh as dmesh

from .. import _compat
from ._meshfile import SHAPES

Facets = npt.NDArray[np.int32]
Marker = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]

GHOSTS = dmesh.GhostMode.shared_facet


@dataclass(frozen=True)
class BoundaryFacets:
    """The boundary facets that this rank owns.

    Attributes:
        facets: their local indices, sorted, shape (n,).
        cells: the cell of each.
        local: its number within that cell.
        nodes: nodes of its vertices, shape (n, dim).
        corners: their coordinates, shape (n, dim, dim).
    """

    facets: Facets
    cells: Facets
    local: npt.NDArray[np.int64]
    nodes: npt.NDArray[np.int32]
    corners: npt.NDArray[np.float64]

    def marked(self, marker: Marker) -> Facets:
        """Facets on which the marker holds at the midpoint or at all vertices; the caller completes the messages."""
        n, dim, _ = self.corners.shape
        points = np.concatenate((self.corners.mean(axis=1), self.corners.reshape(-1, dim))).T
        try:
            holds = np.asarray(marker(np.ascontiguousarray(points)))
        except Exception as e:
            raise ValueError(
                f"raised {type(e).__name__}: {e} (it is called with an array of shape {points.shape})"
            ) from e
        if holds.shape != points.shape[1:] or holds.dtype != bool:
            raise ValueError(
                f"returned {holds.dtype} of shape {holds.shape} for points of shape {points.shape}; expected "
                f"booleans of shape {points.shape[1:]}, as from lambda x: x[0] > 0"
            )
        return self.facets[holds[:n] | holds[n:].reshape(n, dim).all(axis=1)]

    def find(self, mesh: dmesh.Mesh, vertices: npt.NDArray[np.int64]) -> Facets:
        """Those among facets that are given by the nodes of their vertices in the order of input, shape (m, dim)."""
        mine = np.asarray(mesh.geometry.input_global_indices)[self.nodes]
        rows = np.sort(np.vstack((vertices, mine)), axis=1)
        number = np.unique(rows, axis=0, return_inverse=True)[1].ravel()
        return self.facets[np.isin(number[len(vertices) :], number[: len(vertices)])]

    def extent(self, comm: MPI.Comm) -> str:
        """Their bounding box in words (collective)."""
        x = self.corners.reshape(-1, self.corners.shape[2])
        low = np.min(comm.allgather(x.min(axis=0, initial=np.inf)), axis=0)
        high = np.max(comm.allgather(x.max(axis=0, initial=-np.inf)), axis=0)
        return " x ".join(f"[{a:.6g}, {b:.6g}]" for a, b in zip(low, high, strict=True))


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


def find_boundary(mesh: dmesh.Mesh) -> BoundaryFacets:
    """The boundary facets of a mesh of simplices (collective)."""
    topology, dim = mesh.topology, mesh.topology.dim
    topology.create_connectivity(dim - 1, dim)
    topology.create_connectivity(dim, dim - 1)
    facets = np.sort(dmesh.exterior_facet_indices(topology)).astype(np.int32)
    to_cell, to_facet = topology.connectivity(dim - 1, dim), topology.connectivity(dim, dim - 1)
    cells = to_cell.array[to_cell.offsets[facets]]
    local = np.argmax(to_facet.array.reshape(-1, dim + 1)[cells] == facets[:, None], axis=1)
    # the facets of an interval are its vertices; in other simplices facet i is opposite to vertex i
    vertices = [[i] if dim == 1 else [j for j in range(dim + 1) if j != i] for i in range(dim + 1)]
    nodes = _compat.geometry_dofmap(mesh)[cells[:, None], np.array(vertices)[local]]
    return BoundaryFacets(facets, cells, local, nodes, mesh.geometry.x[nodes][:, :, :dim])


def check_finite(where: str, **given: Sequence[float]) -> dict[str, list[float]]:
    """The given numbers as floats, all of them finite."""
    for name, values in given.items():
        try:
            finite = bool(np.isfinite(np.asarray(values, dtype=np.float64)).all())
        except (TypeError, ValueError):
            finite = False
        if not finite:
            raise ValueError(f"{where}: {name} must be made of finite numbers, got {values}")
    return {name: [float(v) for v in values] for name, values in given.items()}


def check_box(
    kind: str, low: Sequence[float], high: Sequence[float], n: Sequence[int]
) -> tuple[list[float], list[float], list[int]]:
    """Corners and numbers of cells of a box, checked."""
    where, dim = f"Domain.{kind}", {"interval": 1, "rectangle": 2, "box": 3}[kind]
    for what, values in (("lower corner", low), ("upper corner", high), ("n", n)):
        if np.shape(values) != (dim,):
            raise ValueError(f"{where}: the {what} must have {dim} entries, got {values!r}")
    x = check_finite(where, low=low, high=high, n=n)
    if any(a >= b for a, b in zip(low, high, strict=True)):
        ends = f"[{low[0]}, {high[0]}]" if dim == 1 else f"corners {tuple(low)} and {tuple(high)}"
        raise ValueError(f"{where}: the lower end must be below the upper one in every coordinate, got {ends}")
    if any(k < 1 or k != int(k) for k in n):
        raise ValueError(
            f"{where}: the numbers of cells must be positive integers, got {n[0] if dim == 1 else tuple(n)}"
        )
    return x["low"], x["high"], [int(k) for k in n]


def sides(low: Sequence[float], high: Sequence[float], names: Sequence[str]) -> dict[str, Marker]:
    """Markers of the sides of a box: for each coordinate the lower and the upper one."""

    def side(i: int, value: float) -> Marker:
        return lambda x: np.abs(x[i] - value) <= 1e-10 * (high[i] - low[i])

    values = [v for pair in zip(low, high, strict=True) for v in pair]
    return {name: side(k // 2, values[k]) for k, name in enumerate(names)}


def create_mesh(
    comm: MPI.Comm, cells: npt.NDArray[np.int64], x: npt.NDArray[np.float64], dim: int, degree: int
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
    return dmesh.create_mesh(comm, cells=cells, x=x, e=element, partitioner=_compat.cell_partitioner(GHOSTS))


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
