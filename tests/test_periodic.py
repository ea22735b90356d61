"""Periodic coordinates: angles, by every scheme, forward and backward, for diffusions, algorithms and paths."""

import numpy as np
import pytest
import ufl
from dolfinx import fem
from scipy.integrate import quad
from scipy.special import i0

import fpsolver as fp
from fpsolver import Domain

pytestmark = pytest.mark.parallel
TURN = 2 * np.pi
F, T = 0.5, 0.2


def washboard():
    """Invariant density and mean velocity of dθ = (F − sin θ) dt + √(2T) dW (Stratonovich), by quadrature."""

    def potential(t):
        return -F * t - np.cos(t)

    def density(t):
        return np.exp(-potential(t) / T) * quad(lambda s: np.exp(potential(s) / T), t, t + TURN, epsabs=1e-12)[0]

    total = quad(density, 0, TURN, epsabs=1e-12)[0]
    return lambda t: density(t) / total, TURN * T * (1 - np.exp(-TURN * F / T)) / total


DENSITY, VELOCITY = washboard()
TILTED = fp.SDE(lambda x: (F - ufl.sin(x[0]),), T)


def velocity(p):
    mesh = p.raw.function_space.mesh
    x, dx = ufl.SpatialCoordinate(mesh), ufl.dx(mesh, metadata={"quadrature_degree": 14})
    return mesh.comm.allreduce(fem.assemble_scalar(fem.form(p.raw * (F - ufl.sin(x[0])) * dx)))


@pytest.mark.parametrize("scheme", ["dg", "galerkin"])
def test_tilted_washboard(scheme):
    domain = Domain.interval(0, TURN, 48, periodic=True)
    assert domain.parts == () and domain.boundary.facets.size == 0
    p = fp.stationary(fp.Generator(TILTED, domain, scheme=scheme))
    assert p.at([0.0, 0.5, 3.0, TURN]) == pytest.approx([DENSITY(t) for t in (0.0, 0.5, 3.0, 0.0)], rel=1e-6)
    assert velocity(p) == pytest.approx(VELOCITY, rel=1e-7)


@pytest.mark.parametrize(
    "domain",
    [
        lambda: Domain.rectangle((0, -1), (TURN, 1), (14, 2), periodic=(True, False)),
        lambda: Domain.rectangle((0, 0), (TURN, TURN), (12, 4), periodic=(True, True)),
        lambda: Domain.box((0, 0, 0), (TURN, 1, 1), (16, 1, 1), periodic=(True, False, False)),
    ],
)
def test_more_dimensions(domain):
    domain = domain()
    others = (0.0,) * (domain.dim - 1)
    p = fp.stationary(fp.Generator(fp.SDE(lambda x: (F - ufl.sin(x[0]), *others), T), domain))
    assert velocity(p) == pytest.approx(VELOCITY, rel=2e-4)


@pytest.mark.parametrize("scheme", ["weighted", "galerkin"])
def test_von_mises(scheme):
    domain = Domain.interval(-np.pi, np.pi, 24, periodic=True)
    gen = fp.Generator(fp.Langevin(lambda x: -ufl.cos(x[0]), 0.25), domain, scheme=scheme)
    at = np.array([-3.1, 0.0, 1.0, 3.1])
    assert fp.stationary(gen).at(at) == pytest.approx(np.exp(4 * np.cos(at)) / (TURN * i0(4.0)), rel=1e-5)


def test_a_brownian_angle_in_time():
    # harmonics decay with rate T k², whichever way one goes around
    domain = Domain.interval(0, TURN, 24, periodic=True)
    gen = fp.Generator(fp.SDE((1.0,), T), domain)
    u = fp.backward(gen, lambda x: ufl.cos(x[0]), [0.7])[0]
    at = np.linspace(0, TURN, 9)
    assert u.at(at) == pytest.approx(np.exp(-0.7 * T) * np.cos(at + 0.7), abs=2e-6)
    flow = fp.evolve(gen, lambda x: (1 + ufl.cos(x[0])) / TURN, [0.7])
    assert flow[0].at(at) == pytest.approx((1 + np.exp(-0.7 * T) * np.cos(at - 0.7)) / TURN, abs=2e-6)
    assert flow.mass[-1] == pytest.approx(1, abs=1e-12)


def test_exit_times_and_refinement_know_no_seam():
    drift = lambda x: (F - ufl.sin(x[0] - 1), ufl.cos(x[0] - 1) / 3)  # noqa: E731
    answers = []
    for left in (0.0, 2.0):
        domain = Domain.rectangle((left, -1), (left + TURN, 1), (12, 6), periodic=(True, False))
        gen = fp.Generator(fp.SDE(drift, T), domain, ["top"])
        tau = fp.mean_exit_time(gen, start=(6.2, 0.0), rtol=1e-6)
        ends = tau.at([(left, 0.1), (left + TURN, 0.1)])
        assert ends[0] == pytest.approx(ends[1], rel=1e-5)
        answers.append(float(tau))
    assert answers[0] == pytest.approx(answers[1], rel=2e-6)


def test_paths_count_their_turns():
    domain = Domain.interval(0, TURN, 8, periodic=True)
    paths = fp.simulate(TILTED, domain, (0.5,), times=[20.0, 120.0], horizon=120.0, paths=2000, step=0.05, seed=1)
    gone = (paths.positions[1] - paths.positions[0])[:, 0] / 100
    assert abs(gone.mean() - VELOCITY) < 4 * gone.std() / np.sqrt(2000)
    assert abs(gone.mean() - VELOCITY) < 0.2 * VELOCITY


@pytest.mark.parametrize("noise", ["samples", "gaussian"])
def test_sgd_on_an_angle(noise):
    # affine steps of an angle: E e^{iθ} of the law is known where a step forgets the angle's first harmonic
    if noise == "samples":
        losses = [lambda w, a=a: a * w[0] for a in (0.4, -1.0, 1.3)]
        process = fp.SGD(None, fp.PerSample(losses), 0.5)
        factor = np.exp(-0.5j * np.array([0.4, -1.0, 1.3])).mean()
    else:
        process = fp.SGD(lambda w: 0.3 * w[0], fp.Isotropic(2.0), 0.5)
        factor = np.exp(-0.15j - 0.5 * 0.25 * 2.0)
    chain = fp.Chain(process, Domain.interval(0, TURN, 40, periodic=True))
    u = fp.backward(chain, lambda x: ufl.cos(x[0]), [1.5])[0]  # three steps
    at = np.linspace(0.1, 6.2, 7)
    assert u.at(at) == pytest.approx((factor**3 * np.exp(1j * at)).real, abs=2e-5)
    p = fp.stationary(chain)
    mean = p.expectation(lambda x: ufl.cos(x[0]))
    assert abs(mean.value) < mean.error + 1e-12 and mean.error < 2e-5


def test_an_algorithm_leaves_as_its_paths_do():
    losses = [lambda w, a=a: -ufl.cos(w[0] - a) + w[1] ** 2 / 4 + 1.2 * a * w[1] for a in (-1.0, 1.0)]
    sgd = fp.SGD(None, fp.PerSample(losses), 0.4)
    domain = Domain.rectangle((0, -1), (TURN, 1), (12, 6), periodic=(True, False))
    tau = fp.mean_exit_time(fp.Chain(sgd, domain, ["top"]), start=(6.2, 0.0))
    paths = fp.simulate(sgd, domain, (6.2, 0.0), absorbing="top", method="sgd", paths=40000, seed=2).mean_exit_time()
    assert abs(float(tau) - paths.value) < 2 * (paths.high - paths.low)
    assert paths.high - paths.low < 0.05 * paths.value


def test_regions_and_refinement():
    domain = Domain.interval(0, TURN, 12, periodic=True)
    finer = domain.refine(np.arange(domain.mesh.topology.index_map(1).size_local))
    assert finer.parts == () and finer.mesh.topology.index_map(1).size_global == 24
    # a particle on a circle between two arcs leaves each way with the chance of the other arc's distance
    gen = fp.Generator(fp.SDE((0.0,), 1.0), finer)
    q = fp.committor(gen, lambda x: np.abs(x[0] - 1.0) < 0.2, lambda x: np.abs(x[0] - 4.0) < 0.2)
    assert q.at([2.5, 6.0]) == pytest.approx([0.5, (1.0 + TURN - 0.2 - 6.0) / (TURN - 3.4)], abs=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fp.Generator(fp.SDE(lambda x: (F - x[0],), T), Domain.interval(0, TURN, 8, periodic=True)),
            r"drift\[0\] is 0.5 on one side .* -5.78319 on the other",
        ),
        (
            lambda: fp.Generator(fp.SDE((1.0,), lambda x: 1 + x[0]), Domain.interval(0, 1, 8, periodic=True)),
            r"diffusion\[0, 0\] is 1 on one side .* 2 on the other",
        ),
        (lambda: Domain.interval(0, 1, 2, periodic=True), "at least 3 cells in periodic directions"),
        (lambda: Domain.rectangle((0, 0), (1, 1), (3, 3), periodic=["left", "right"]), "2 of True or False"),
        (
            lambda: Domain.rectangle((0, 0), (1, 1), (4, 4), periodic=(True, False)).mapped(
                lambda x: (x[0], x[1] * (1 + 0.5 * x[0]))
            ),
            "has no copy on the other side",
        ),
    ],
)
def test_what_is_not_periodic_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_files_of_domains_know_no_period(tmp_dir):
    with pytest.raises(ValueError, match="which sides of a periodic domain are one"):
        fp.io.write_domain(tmp_dir / "ring.xdmf", Domain.interval(0, TURN, 8, periodic=True))
