"""Reflecting walls on which the drift presses: stable with dg whatever the mesh resolves, unchanged where it does."""

from mpi4py import MPI
from petsc4py import PETSc
from slepc4py import SLEPc

import numpy as np
import pytest
import ufl
from scipy import stats
from tools import check

import fpsolver as fp
from fpsolver.discretisation import generator
from fpsolver.discretisation.boundary import lacking_diffusion


def _fastest_growth(gen, near):
    """Largest real part among the eigenvalues closest to some real numbers."""
    found = []
    for target in near:
        eps = SLEPc.EPS().create(gen.domain.comm)
        eps.setOperators(gen.G, gen.M)
        eps.setProblemType(SLEPc.EPS.ProblemType.GNHEP)
        eps.setTarget(target)
        eps.setWhichEigenpairs(SLEPc.EPS.Which.TARGET_MAGNITUDE)
        eps.setDimensions(4)
        eps.getST().setType(SLEPc.ST.Type.SINVERT)
        ksp = eps.getST().getKSP()
        ksp.setType(PETSc.KSP.Type.PREONLY)
        ksp.getPC().setType(PETSc.PC.Type.LU)
        ksp.getPC().setFactorSolverType("mumps")
        eps.solve()
        found += [eps.getEigenvalue(i).real for i in range(eps.getConverged())]
        eps.destroy()
    return max(found)


def _kinetic(n, degree):
    process = fp.SDE(lambda x: (x[1], -x[0] - x[1]), ((0, 0), (0, 1.0)))
    return fp.Generator(process, fp.Domain.rectangle((-6, -6), (6, 6), (n, n)), degree=degree)


def _unstable(n, degree):
    """Away from the origin, with noise along the walls left and right only."""
    process = fp.SDE(lambda x: (x[0], -x[1]), ((0, 0), (0, 1e-3)))
    return fp.Generator(process, fp.Domain.rectangle((-6, -6), (6, 6), (n, n)), degree=degree)


def _neuron(n, degree):
    """Noise of rank one, whose normal part vanishes in a point of the lower wall, where the drift leaves."""
    data = [(-0.75, -0.59), (-0.42, 1.18)]
    losses = [
        lambda w, a=a, y=y: (ufl.sin(a * w[0] + w[1]) - y) ** 2 / 2 + 0.05 * (w[0] ** 2 + w[1] ** 2) for a, y in data
    ]
    domain = fp.Domain.rectangle((-5, -2.5), (4, 4.5), (4 * n, 3 * n))
    return fp.Generator(fp.SGD(None, fp.PerSample(losses), 0.4), domain, degree=degree)


def added(gen):
    """The largest diffusion that is added at walls."""
    tensors = lacking_diffusion(gen.boundary, gen.coefficients, gen.territory.stops, gen.degree)
    value = gen.domain.comm.allreduce(float(np.trace(tensors, axis1=1, axis2=2).max(initial=0.0)), op=MPI.MAX)
    assert (gen.at_walls is not None) == (value > 0)
    return value


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("make", "n", "degree", "near"), [(_kinetic, 10, 6, [10.0]), (_unstable, 6, 4, [1.0, 10.0]), (_neuron, 6, 4, [1.0])]
)
def test_no_mode_grows(make, n, degree, near):
    """Without the diffusion at walls they grow with rates 8.3, 11 and 0.9."""
    gen = make(n, degree)
    assert added(gen) > 0
    assert _fastest_growth(gen, near) < 1e-5


@pytest.mark.parallel
def test_kinetic_law_of_high_degree_on_a_coarse_mesh():
    """From N((1, 0), I) the law stays N(m(t), I)."""
    gen, times = _kinetic(10, 6), [1.0, 20.0]
    law = fp.evolve(gen, fp.gaussian((1.0, 0.0), 1.0), times)
    check(law.mass, [1.0, 1.0], 1e-12)
    points = np.array([(0.5, -0.5), (1.0, 0.0), (-1.0, 1.0)])
    for mean, p in zip([(0.659700153391702, -0.533507195114693), (0.0, 0.0)], law, strict=True):
        check(p.at(points), stats.multivariate_normal.pdf(points, mean), 4e-4)


def test_a_resolved_layer_is_left_alone():
    """dX = dt + dW/√2 towards the wall at 1: density ∝ e^{4x}, resolved by its cells."""
    gen = fp.Generator(fp.SDE(1.0, 0.25), fp.Domain.interval(0, 1, 4), degree=4, scheme="dg")
    assert added(gen) == 0.0
    x = np.array([0.1, 0.6, 0.99])
    check(fp.stationary(gen).at(x), 4 * np.exp(4 * x) / np.expm1(4), 1e-4)
    assert added(fp.Generator(fp.SDE(1.0, 1e-3), fp.Domain.interval(0, 1, 4), degree=4)) > 0


def test_noise_that_vanishes_linearly_at_a_wall_suffices():
    """dX = (1/4 − X) dt + √X dW reaches zero, where its noise vanishes."""
    gen = fp.Generator(fp.SDE(lambda x: 0.25 - x[0], lambda x: x[0] / 2), fp.Domain.interval(0, 8, 10))
    assert gen.boundary_report()["left"].outflow == 1.0
    assert added(gen) == 0.0


def test_other_numbers_have_walls_of_their_own():
    with _neuron(3, 4) as gen, gen.replace(learning_rate=0.8) as other:
        assert added(other) != added(gen)
        again = other.replace(learning_rate=0.4)
        difference = again.G.copy()
        difference.axpy(-1.0, gen.G)
        assert difference.norm() <= 1e-14 * gen.G.norm()


@pytest.mark.parallel
@pytest.mark.parametrize("verb", ["evolve", "backward"])
def test_what_grows_is_refused(verb, monkeypatch):
    """Without the diffusion at walls: by a factor 244 at t = 3, and 129 at t = 1, where nothing can grow."""
    monkeypatch.setattr(generator, "lacking_diffusion", lambda b, *_: np.zeros((_local_cells(b.mesh), 2, 2)))
    gen = _kinetic(10, 6)
    source = fp.gaussian((1.0, 0.0), 1.0) if verb == "evolve" else lambda x: x[0] ** 2
    with pytest.raises(fp.NotConverged, match=r"DIVERGED_GROWTH.* grew by a factor") as caught:
        getattr(fp, verb)(gen, source, [0.1, 3.0])
    assert caught.value.partial.times.tolist() == [0.1]


def _local_cells(mesh):
    cells = mesh.topology.index_map(mesh.topology.dim)
    return cells.size_local + cells.num_ghosts


@pytest.mark.parametrize("degree", [1, 4])
def test_a_law_that_collapses_between_nodes_is_not_refused(degree):
    """Without noise all mass goes to one point: the mesh makes a spike of it, with undershoots, and no more."""
    domain = fp.Domain.rectangle((-2, -2), (2, 2), (6, 6))
    gen = fp.Generator(fp.SDE(lambda x: (0.13 - x[0], 0.21 - x[1]), ((0, 0), (0, 0))), domain, degree=degree)
    law = fp.evolve(gen, fp.gaussian((0.7, 0.5), 0.5), [1.0, 20.0], time_rtol=1e-3)
    check(law.mass, [1.0, 1.0], 1e-12)


@pytest.mark.parallel
@pytest.mark.parametrize(("n", "tolerance"), [((3, 8), 5e-6), ((6, 16), 5e-7)])
def test_diffusion_at_walls_acts_across_them_only(n, tolerance):
    """dv = −v dt + √2 dW, absorbed at |v| = 2, while dx = 0.3 dt presses on the right wall: T does not depend on x."""
    process = fp.SDE(lambda x: (0.3 + 0 * x[1], -x[1]), ((0, 0), (0, 1.0)))
    gen = fp.Generator(process, fp.Domain.rectangle((0, -2), (1, 2), n), absorbing=["bottom", "top"])
    assert added(gen) > 0
    tau, exact = fp.mean_exit_time(gen, start=(0.2, 0.5)), 4.37121571615713
    error = abs(tau.at((0.2, 0.5))[0] - exact)
    assert error < tolerance
    assert 0.5 * error <= tau.error[0] < 1e-5


@pytest.mark.parallel
@pytest.mark.parametrize(("shear", "push"), [(1.0, 1.0), (1.0, 10.0), (-0.5, 10.0)])
@pytest.mark.parametrize("degree", [2, 4])
def test_error_bars_contain_what_walls_add(shear, push, degree):
    """Drift (1 + a(1 − y), q) up to y = 1, then along it: what is added at the wall is most of the error."""
    process = fp.SDE(lambda x: (1 + shear * (1 - x[1]), push + 0 * x[0]), ((0, 0), (0, 0)))
    gen = fp.Generator(process, fp.Domain.rectangle((0, 0), (1, 1), (8, 8)), absorbing=["right"], degree=degree)
    rise = 0.5 / push
    exact = rise + 0.7 - rise - shear * push * rise**2 / 2
    tau = fp.mean_exit_time(gen, start=(0.3, 0.5))
    assert 0.5 <= tau.error[0] / abs(tau.at((0.3, 0.5))[0] - exact) <= 2
