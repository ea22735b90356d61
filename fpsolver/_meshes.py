"""What the constructors of :class:`fpsolver.Domain` need: checked arguments, distributed meshes, marked sides."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mpi4py import MPI

import basix.ufl
import numpy as np
import numpy.typing as npt
from dolfinx import default_real_type, io
from dolfinx import mesh as dmesh

from . import _compat
from ._meshfile import SHAPES

Facets = npt.NDArray[np.int32]
Marker = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]

GHOSTS = dmesh.GhostMode.shared_facet


def check_finite(where: str, **given: Sequence[float]) -> dict[str, list[float]]:
    """The given numbers as floats, all of them finite."""
    for name, values in given.items():
        try:
            finite = np.isfinite(np.asarray(values, dtype=np.float64)).all()
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
