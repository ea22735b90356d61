"""What several test modules need: meshes by hand, errors without compiling forms, memory."""

from collections.abc import Callable, Sequence
from itertools import permutations, product
from typing import Any

from mpi4py import MPI

import basix.ufl
import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh

import fpsolver as fp
from fpsolver._compat import cell_partitioner
from fpsolver.discretisation.assembly import to_vector
from fpsolver.domains._arrays import RawMesh
from fpsolver.domains._gmsh import current_model, session
from fpsolver.domains._meshes import distribute

BOX = {1: ["left", "right"], 2: ["left", "right", "bottom", "top"]}
BOX[3] = [*BOX[2], "front", "back"]


def check(value: Any, exact: Any, rtol: float) -> None:
    """Assert that the largest error, relative to the largest exact value, is at most ``rtol``."""
    value, exact = np.asarray(value, float), np.asarray(exact, float)
    assert value.shape == exact.shape or exact.ndim == 0, f"shapes {value.shape} and {exact.shape}"
    assert np.isfinite(value).all(), f"not finite: {value}"
    error = np.abs(value - exact).max() / np.abs(exact).max()
    assert error <= rtol, f"relative error {error:.2e} exceeds {rtol:.2e}: found {value}, exact {exact}"


def box(dim: int, n: int, low: float = -1.0, high: float = 1.0, comm: MPI.Comm = MPI.COMM_WORLD) -> fp.Domain:
    """(low, high)^dim in n^dim boxes."""
    if dim == 1:
        return fp.Domain.interval(low, high, n, comm=comm)
    make = fp.Domain.rectangle if dim == 2 else fp.Domain.box
    return make((low,) * dim, (high,) * dim, (n,) * dim, comm=comm)


def simplex(vertices: Sequence[Sequence[float]], n: int, comm: MPI.Comm = MPI.COMM_WORLD) -> fp.Domain:
    """The simplex with these vertices, its edges cut into n (Freudenthal's subdivision)."""
    corners = np.asarray(vertices, float)
    dim = corners.shape[1]
    nodes: dict[tuple[int, ...], int] = {}
    cells = []
    for corner in product(range(n), repeat=dim):
        for order in permutations(range(dim)):
            path = [np.array(corner)]
            for axis in order:
                path.append(path[-1] + np.eye(dim, dtype=int)[axis])
            if all((np.diff(p) <= 0).all() for p in path):  # inside n >= y_1 >= ... >= y_d >= 0
                cells.append([nodes.setdefault(tuple(int(c) for c in p), len(nodes)) for p in path])
    y = np.array(list(nodes)) / n
    x = corners[0] + y @ np.diff(corners, axis=0)
    element = basix.ufl.element("Lagrange", ["interval", "triangle", "tetrahedron"][dim - 1], 1, shape=(dim,))
    mine = slice(None) if comm.rank == 0 else slice(0)
    mesh = dmesh.create_mesh(
        comm,
        cells=np.array(cells, dtype=np.int64)[mine],
        x=x[mine],
        e=ufl.Mesh(element),
        partitioner=cell_partitioner(),
    )
    return fp.Domain(mesh)


def random_acceleration(n: tuple[int, int] = (4, 8)) -> fp.Generator:
    """dX = V dt, dV = √2 dW on 0 < X < 1, left through either end."""
    domain = fp.Domain.rectangle((0, -4), (1, 4), n)
    domain.mark("high", lambda x: (x[0] > 1 - 1e-9) & (x[1] > 0))
    domain.mark("low", lambda x: (x[0] < 1e-9) & (x[1] < 0))
    return fp.Generator(fp.SDE(lambda x: (x[1], 0), ((0, 0), (0, 1.0))), domain, ["high", "low"])


def narrow_escape(gate: float, h: float = 0.3, degree: int = 3) -> fp.Generator:
    """The unit disk with D = I, left through the arc |θ| < gate, whose ends are nodes of the mesh."""
    comm = MPI.COMM_WORLD
    domain = fp.Domain._of(distribute(comm, lambda: _disk_with_gate(gate, h)))
    return fp.Generator(fp.SDE((0.0, 0.0), 1.0), domain, ["gate"], degree=degree)


def _disk_with_gate(gate: float, h: float) -> RawMesh:
    with session("a disk with a gate") as gmsh:
        geo = gmsh.model.geo
        centre = geo.addPoint(0, 0, 0, h)
        angles = [-gate, *np.linspace(gate, 2 * np.pi - gate, 5)[:-1]]
        ends = [geo.addPoint(np.cos(a), np.sin(a), 0, h) for a in angles]
        arcs = [geo.addCircleArc(a, centre, b) for a, b in zip(ends, [*ends[1:], ends[0]], strict=True)]
        surface = geo.addPlaneSurface([geo.addCurveLoop(arcs)])
        geo.synchronize()
        gmsh.model.addPhysicalGroup(1, arcs[:1], name="gate")
        gmsh.model.addPhysicalGroup(1, arcs[1:], name="wall")
        gmsh.model.addPhysicalGroup(2, [surface], name="disk")
        gmsh.model.mesh.generate(2)
        gmsh.model.mesh.setOrder(3)
        return current_model(gmsh, "a disk with a gate")


def interpolated(gen: fp.Generator, f: Callable[[np.ndarray], Any]) -> fem.Function:
    """A numpy function of coordinates (dim, n) on the generator's space."""
    function = fem.Function(gen.V)
    function.interpolate(lambda x: f(x) + 0.0 * x[0])
    return function


def pairing(gen: fp.Generator, u: fem.Function, p: fem.Function) -> float:
    """∫ u p for two functions on the generator's space (collective)."""
    a, b = to_vector(gen, u), to_vector(gen, p)
    work = gen.M.createVecLeft()
    gen.M.mult(b, work)
    value = work.dot(a)
    for v in (a, b, work):
        v.destroy()
    return float(value)


def expectation(gen: fp.Generator, f: Callable[[np.ndarray], Any], p: fem.Function) -> float:
    """∫ f p, exact for polynomials f of the space's degree."""
    return pairing(gen, interpolated(gen, f), p)


def mean_and_covariance(gen: fp.Generator, p: fem.Function) -> tuple[np.ndarray, np.ndarray]:
    """Moments of a density in at least quadratic elements."""
    d = gen.domain.dim
    mass = expectation(gen, lambda x: 1.0, p)
    mean = np.array([expectation(gen, lambda x, i=i: x[i], p) for i in range(d)]) / mass
    second = [[expectation(gen, lambda x, i=i, j=j: x[i] * x[j], p) for j in range(d)] for i in range(d)]
    return mean, np.array(second) / mass - np.outer(mean, mean)


def coefficient_error(gen: fp.Generator, u: fem.Function, exact: Callable[[np.ndarray], Any]) -> float:
    """Largest difference from the interpolant of ``exact`` relative to its maximum (collective)."""
    e = interpolated(gen, exact).x.array
    size = gen.domain.comm.allreduce(np.abs(e).max(initial=0.0), op=MPI.MAX)
    return gen.domain.comm.allreduce(np.abs(u.x.array - e).max(initial=0.0), op=MPI.MAX) / size


def l2_error(u: fem.Function, exact: Callable[[Any], Any]) -> float:
    """L2 norm of the difference from a function of UFL or numpy coordinates (collective)."""
    mesh = u.function_space.mesh
    fine = fem.Function(fem.functionspace(mesh, ("DG", 6)))
    fine.interpolate(exact)
    form = fem.form((u - fine) ** 2 * ufl.dx(domain=mesh, metadata={"quadrature_degree": 12}))
    return float(np.sqrt(mesh.comm.allreduce(fem.assemble_scalar(form))))


def resident_megabytes() -> float:
    """Memory that this process occupies."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 2**20


def triangulated(low: float, high: float, n: int, keep: Callable[[np.ndarray], np.ndarray]) -> dmesh.Mesh:
    """Those triangles of an n x n grid on (low, high)² whose centres ``keep`` accepts (on each process by itself)."""
    t = np.linspace(low, high, n + 1)
    x = np.stack(np.meshgrid(t, t, indexing="ij"), axis=-1).reshape(-1, 2)
    a = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).ravel()
    cells = np.vstack([np.column_stack([a, a + n + 1, a + n + 2]), np.column_stack([a, a + 1, a + n + 2])])
    cells = cells[keep(x[cells].mean(axis=1))]
    used, cells = np.unique(cells, return_inverse=True)
    element = ufl.Mesh(basix.ufl.element("Lagrange", "triangle", 1, shape=(2,)))
    return dmesh.create_mesh(MPI.COMM_SELF, cells=cells.reshape(-1, 3).astype(np.int64), x=x[used], e=element)


def within(estimate: Any, exact: float, bias: float = 0.0) -> None:
    """Assert that an estimate with a 95 % interval lies within 3.5 standard deviations and a known bias of a value."""
    far = abs(estimate.value - exact) - bias
    assert far <= 3.5 / 1.96 * estimate.error, f"{estimate} is not {exact} (bias {bias})"


def whole(process: Any, start: Any, time: float, method: str = "sde", paths: int = 10_000, **more: Any) -> Any:
    """Paths in the whole space until ``time``."""
    return fp.simulate(process, None, start, times=[time], method=method, paths=paths, **more)
