"""The DOLFINx differences, each on the installed version, with deprecation warnings as errors."""

from mpi4py import MPI

import numpy as np
import pytest
from dolfinx import fem
from dolfinx import mesh as dmesh

from fpsolver import _compat

pytestmark = [pytest.mark.parallel, pytest.mark.filterwarnings("error::DeprecationWarning")]


@pytest.fixture
def square():
    return dmesh.create_unit_square(MPI.COMM_WORLD, 4, 4)


def test_interpolation_points(square):
    V = fem.functionspace(square, ("Lagrange", 2))
    points = _compat.interpolation_points(V.element)
    assert points.shape == (6, 2)
    f = fem.Function(V)
    f.interpolate(fem.Expression(2.0 * fem.Constant(square, 1.5), points))
    assert np.allclose(f.x.array, 3.0)


def test_geometry(square):
    assert _compat.coordinate_map(square).degree == 1
    cells = square.topology.index_map(2)
    assert _compat.geometry_dofmap(square).shape == (cells.size_local + cells.num_ghosts, 3)


def test_cell_partitioner_keeps_neighbours():
    import basix.ufl

    comm, n = MPI.COMM_WORLD, 12
    x = np.linspace(0, 1, n + 1)[:, None] if comm.rank == 0 else np.empty((0, 1))
    cells = np.column_stack((np.arange(n), np.arange(1, n + 1))) if comm.rank == 0 else np.empty((0, 2))
    element = basix.ufl.element("Lagrange", "interval", 1, shape=(1,))
    mesh = dmesh.create_mesh(comm, cells=cells.astype(np.int64), x=x, e=element, partitioner=_compat.cell_partitioner())
    ghosts = comm.allreduce(mesh.topology.index_map(1).num_ghosts)
    assert (ghosts > 0) == (comm.size > 1)


@pytest.mark.parametrize("convention", ["gmsh", "vtk"])
def test_node_order(convention):
    assert _compat.node_order(convention, "triangle", 3).tolist() == [0, 1, 2]
    assert sorted(_compat.node_order(convention, "tetrahedron", 10)) == list(range(10))
