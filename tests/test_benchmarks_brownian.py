"""Exit times and exit laws of processes with uniformly positive diffusion, against closed forms and series.

Tolerances are two to five times the discretisation error on these meshes.
"""

from functools import cache

from mpi4py import MPI

import numpy as np
import pytest
import reference
from dolfinx import mesh as dmesh
from tools import BOX, box, check, interpolated, pairing, simplex

import fpsolver as fp
from fpsolver.discretisation.assembly import to_vector
from fpsolver.discretisation.solver import basis_integrals

SCHEMES = pytest.mark.parametrize("scheme", ["galerkin", "dg"])


def _brownian(dim, level=0.5):
    return fp.SDE(0.0 if dim == 1 else (0,) * dim, level)


# ---------------------------------------------------------------- intervals


@cache
def _interval(scheme):
    return fp.Generator(_brownian(1), fp.Domain.interval(-1, 1, 10), BOX[1], scheme=scheme)


@SCHEMES
def test_exit_time_of_the_interval(scheme):
    tau = fp.mean_exit_time(_interval(scheme))
    check(tau.at([0.0, 0.5, -0.9]), [1.0, 0.75, 0.19], 1e-12)


@SCHEMES
def test_second_moment_of_the_exit_time_of_the_interval(scheme):
    first, second = fp.exit_time_moments(_interval(scheme), 2)
    check(first.at(0.0), [1.0], 1e-12)
    check(second.at(0.0), [5 / 3], 1e-12)


@SCHEMES
@pytest.mark.parametrize("rate", [1.0, 4.0])
def test_moment_generating_function_of_the_exit_time_of_the_interval(scheme, rate):
    """E e^{−sτ} = cosh(√(2s) x)/cosh √(2s)."""
    u = fp.feynman_kac(_interval(scheme), exit=1.0, killing=rate)
    x, root = np.array([0.0, 0.3]), np.sqrt(2 * rate)
    check(u.at(x), np.cosh(root * x) / np.cosh(root), 1e-7 if rate == 4 else 2e-9)


@pytest.mark.parallel
@SCHEMES
def test_survival_in_the_interval(scheme):
    """Backwards from 1 for every start at once, and forwards as the mass that is left."""
    times = [0.1, 0.5, 1.0, 2.0]
    exact = [reference.interval_survival(t) for t in times]
    gen = _interval(scheme)
    u = fp.backward(gen, 1.0, times, time_rtol=1e-9)
    check([u[i].at(0.0)[0] for i in range(4)], exact, 6e-8)
    check(u[1].at(0.5), [reference.interval_survival(0.5, 0.5)], 6e-8)
    # from the density (π/4) cos(πx/2) the survival is one exponential
    p0 = interpolated(gen, lambda x: np.pi / 4 * np.cos(np.pi * x[0] / 2))
    p0.x.array[:] /= pairing(gen, interpolated(gen, lambda x: 1.0), p0)
    check(fp.evolve(gen, p0, times, time_rtol=1e-9).mass, np.exp(-(np.pi**2) / 8 * np.array(times)), 1e-9)


def test_exit_with_drift():
    gen = fp.Generator(fp.SDE(1.0, 0.5), fp.Domain.interval(0, 1, 8), BOX[1])
    check(fp.mean_exit_time(gen).at(0.5), [reference.exit_time_1d(0.5, 0, 1, lambda x: 1.0, lambda x: 0.5)], 2e-12)
    k, x = 2.0, np.array([0.1, 0.5, 0.8])
    check(fp.exit_probability(gen, to=["right"]).at(x), np.expm1(-k * x) / np.expm1(-k), 3e-8)


@pytest.mark.parallel
def test_exit_through_a_boundary_layer():
    """Drift 1 and D = 0.01 on (0, 1): the layer at 0 has thickness 0.01, the cells are as large."""
    gen = fp.Generator(fp.SDE(1.0, 0.01), fp.Domain.interval(0, 1, 100), BOX[1])
    assert gen.scheme == "galerkin"
    check(fp.mean_exit_time(gen).at(0.5), [0.5], 1e-12)
    check(fp.exit_probability(gen, to="right").at([0.01, 0.03]), -np.expm1([-1.0, -3.0]), 5e-8)


def test_cells_much_larger_than_the_layer_choose_dg():
    gen = fp.Generator(fp.SDE(1.0, 1e-4), fp.Domain.interval(0, 1, 20), BOX[1])
    assert gen.scheme == "dg"
    check(fp.mean_exit_time(gen).at([0.3, 0.5, 0.8]), [0.7, 0.5, 0.2], 3e-6)


# ---------------------------------------------------------------- disk, ball, annulus


@cache
def _disk():
    return fp.Generator(_brownian(2), fp.Domain.disk((0, 0), 1, 0.3), ["boundary"])


@pytest.mark.parallel
def test_exit_time_of_the_disk():
    first, second = fp.exit_time_moments(_disk(), 2)
    check(first.at([(0, 0), (0.6, 0), (0.3, -0.4)]), [0.5, 0.32, 0.375], 5e-5)
    check(second.at((0, 0)), [3 / 8], 5e-5)
    check(fp.feynman_kac(_disk(), exit=1.0, killing=1.0).at((0, 0)), [1 / np.i0(np.sqrt(2))], 5e-5)


@pytest.mark.parallel
def test_survival_in_the_disk():
    u = fp.backward(_disk(), 1.0, [0.2, 0.5, 1.0], time_rtol=1e-8)
    check([u[i].at((0, 0))[0] for i in range(3)], [reference.disk_survival(t) for t in (0.2, 0.5, 1.0)], 5e-5)


@pytest.mark.parallel
def test_exit_law_of_the_disk():
    """Poisson's kernel: from (1/2, 0) through the arc |θ| < π/4."""
    domain = fp.Domain.disk((0, 0), 1, 0.25)
    domain.mark("arc", lambda x: np.abs(np.arctan2(x[1], x[0])) < np.pi / 4)
    domain.mark("rest", lambda x: np.abs(np.arctan2(x[1], x[0])) >= np.pi / 4)
    gen = fp.Generator(_brownian(2), domain, ["arc", "rest"])
    low, high = _arc(domain)
    check(
        fp.exit_probability(gen, to=["arc"]).at((0.5, 0)),
        [(np.arctan(3 * np.tan(high / 2)) - np.arctan(3 * np.tan(low / 2))) / np.pi],
        2e-5,
    )


def _arc(domain):
    """The angles at which a part of the circle begins and ends, those of nodes of the mesh (collective)."""
    domain.mesh.topology.create_connectivity(1, 2)
    facets = domain.facets("arc")
    # DOLFINx 0.9 divides by their number
    nodes = dmesh.entities_to_geometry(domain.mesh, 1, facets) if len(facets) else np.zeros(0, np.int32)
    x = domain.mesh.geometry.x[nodes.ravel()]
    angle = np.arctan2(x[:, 1], x[:, 0])
    low, high = angle.min(initial=np.inf), angle.max(initial=-np.inf)
    return domain.comm.allreduce(low, op=MPI.MIN), domain.comm.allreduce(high, op=MPI.MAX)


@cache
def _ball():
    return fp.Generator(_brownian(3), fp.Domain.ball((0, 0, 0), 1, 0.5), ["boundary"])


def test_exit_time_of_the_ball():
    gen = _ball()
    assert gen.G.size[0] < 20_000
    check(fp.mean_exit_time(gen).at([(0, 0, 0), (0, 0.5, 0)]), [1 / 3, 0.25], 1e-3)
    root = np.sqrt(2)
    check(fp.feynman_kac(gen, exit=1.0, killing=1.0).at((0, 0, 0)), [root / np.sinh(root)], 3e-4)


def test_survival_in_the_ball():
    u = fp.survival(_ball(), (0, 0, 0), [0.1, 0.25, 0.5], time_rtol=1e-6)
    check(reference.ball_survival(0.1), 0.965998533590, 1e-11)
    check(u, [reference.ball_survival(t) for t in (0.1, 0.25, 0.5)], 2e-3)


@pytest.mark.parallel
def test_exit_law_of_the_ball(tmp_dir):
    """Upper hemisphere from (0, 0, 1/2), with facets that follow the equator."""
    gen = fp.Generator(_brownian(3), _two_half_balls(tmp_dir / "ball.msh", 0.4), ["upper", "lower"])
    check(fp.exit_probability(gen, to=["upper"]).at((0, 0, 0.5)), [0.829179606750063], 4e-4)
    law = fp.exit_distribution(gen, (0, 0, 0.5))
    check(law.probability["upper"], 0.829179606750063, 4e-4)
    assert sum(law.probability.values()) == pytest.approx(1, abs=1e-10)


def _two_half_balls(path, h):
    """The unit ball; the parts upper and lower of its surface meet at z = 0."""
    if MPI.COMM_WORLD.rank == 0:
        import gmsh

        gmsh.initialize(interruptible=False)
        gmsh.option.setNumber("General.Terminal", 0)
        halves = [gmsh.model.occ.addSphere(0, 0, 0, 1, angle1=a, angle2=a + np.pi / 2) for a in (0, -np.pi / 2)]
        gmsh.model.occ.fragment([(3, halves[0])], [(3, halves[1])])
        gmsh.model.occ.synchronize()
        heights = {s: gmsh.model.occ.getCenterOfMass(2, s)[2] for _, s in gmsh.model.getEntities(2)}
        gmsh.model.addPhysicalGroup(3, [v for _, v in gmsh.model.getEntities(3)])
        gmsh.model.addPhysicalGroup(2, [s for s, z in heights.items() if z > 0.1], name="upper")
        gmsh.model.addPhysicalGroup(2, [s for s, z in heights.items() if z < -0.1], name="lower")
        gmsh.option.setNumber("Mesh.MeshSizeMax", h)
        gmsh.model.mesh.generate(3)
        gmsh.model.mesh.setOrder(2)
        gmsh.write(str(path))
        gmsh.finalize()
    MPI.COMM_WORLD.Barrier()
    return fp.Domain.read(path)


@cache
def _annulus():
    return fp.Domain.annulus((0, 0), 1, 2, 0.3)


@pytest.mark.parallel
def test_exit_time_of_the_annulus():
    gen = fp.Generator(_brownian(2), _annulus(), ["inner", "outer"])
    radii = np.array([1.2, 1.5, 1.8])
    points = np.column_stack([radii * np.cos(1.0), radii * np.sin(1.0)])
    check(fp.mean_exit_time(gen).at(points), [reference.annulus_exit_time(r) for r in radii], 1e-4)
    check(fp.exit_probability(gen, to=["outer"]).at(points), np.log(radii) / np.log(2), 1e-4)


@pytest.mark.parallel
def test_exit_time_of_the_shell():
    """1 < |x| < 2 in three dimensions: 1/4 at 3/2, and 2/3 for the outer sphere first."""
    gen = fp.Generator(_brownian(3), fp.Domain.annulus((0, 0, 0), 1, 2, 0.6), ["inner", "outer"])
    point = 1.5 * np.array([2, -1, 2]) / 3
    check(fp.mean_exit_time(gen).at(point), [0.25], 3e-3)
    check(fp.exit_probability(gen, to=["outer"]).at(point), [2 / 3], 2e-3)


def test_exit_time_of_the_annulus_with_a_reflecting_circle():
    gen = fp.Generator(_brownian(2), _annulus(), ["inner"])
    tau = fp.mean_exit_time(gen)
    check(tau.at([(0, 1.5), (-1.9, 0)]), [(1 - r * r) / 2 + 4 * np.log(r) for r in (1.5, 1.9)], 1e-4)


# ---------------------------------------------------------------- boxes, triangle


def test_exit_time_of_the_square():
    gen = fp.Generator(_brownian(2), box(2, 4), BOX[2])
    tau = fp.mean_exit_time(gen)
    points = [(0, 0), (0.5, 0.5), (-0.5, 0.25)]
    check(tau.at(points), [reference.square_exit_time(*p) for p in points], 1e-6)
    check(basis_integrals(gen).dot(to_vector(gen, tau.function)), 1.12461611964123, 1e-5)


@pytest.mark.parallel
def test_exit_time_of_the_cube():
    """By symmetry an eighth of it, with three reflecting sides, will do."""
    check(reference.cube_exit_time(), 0.449702638635483, 3e-10)
    gen = fp.Generator(_brownian(3), fp.Domain.box((0, 0, 0), (1, 1, 1), (3, 3, 3)), ["right", "back", "top"], degree=4)
    check(fp.mean_exit_time(gen).at((0, 0, 0)), [0.449702638635483], 1e-5)


@pytest.mark.parallel
@pytest.mark.parametrize("k", [0, 2, 4, 6])
def test_exit_time_of_the_disk_with_anisotropic_noise(k):
    """(1 − |x|²)/(2 tr D) for every constant D: eigenvalues 1 and 10^{−k}, in directions unrelated to the mesh."""
    c, s = np.cos(0.7), np.sin(0.7)
    turn = np.array([[c, -s], [s, c]])
    D = turn @ np.diag([1.0, 10.0**-k]) @ turn.T
    gen = fp.Generator(fp.SDE((0, 0), D.tolist()), fp.Domain.disk((0, 0), 1, 0.25), ["boundary"])
    points = np.array([(0, 0), (0.3, -0.5), (-0.6, 0.1)])
    check(fp.mean_exit_time(gen).at(points), (1 - np.sum(points**2, axis=1)) / (2 * np.trace(D)), 3e-5)


def test_exit_time_of_the_equilateral_triangle():
    """2 d₁ d₂ d₃/H with the distances to the sides: a cubic."""
    H = np.sqrt(3) / 2
    domain = simplex([(0, 0), (1, 0), (0.5, H)], 3)
    gen = fp.Generator(_brownian(2), domain, ["boundary"], degree=3)
    tau = fp.mean_exit_time(gen)
    check(tau.at([(0.5, H / 3)]), [1 / 18], 1e-12)


@pytest.mark.parallel
def test_exit_side_of_the_square():
    gen = fp.Generator(_brownian(2), fp.Domain.rectangle((0, 0), (1, 1), (6, 6)), BOX[2])
    points = [(0.5, 0.5), (0.25, 0.5), (0.25, 0.25)]
    check(
        fp.exit_probability(gen, to=["right"]).at(points), [reference.exit_side_probability(*p) for p in points], 3e-7
    )
    both = fp.exit_probability(gen, to=["left", "right"]).at((0.5, 0.5))
    check(both, [0.5], 1e-12)


def test_narrow_escape_from_the_disk():
    """Absorbing arc of about one radian, with square-root singularities at its ends (Caginalp, Chen 2012)."""
    domain = fp.Domain.disk((0, 0), 1, 0.1)
    domain.mark("arc", lambda x: np.abs(np.arctan2(x[1], x[0])) < 0.5)
    low, high = _arc(domain)
    gen = fp.Generator(_brownian(2, 1.0), domain, ["arc"])
    turn = np.exp(-0.5j * (low + high))
    points = np.array([0, -0.99, 0.5])
    exact = [reference.narrow_escape_time(z * turn, (high - low) / 2) for z in points]
    check(fp.mean_exit_time(gen).at(np.column_stack([points, 0 * points])), exact, 1e-2)
