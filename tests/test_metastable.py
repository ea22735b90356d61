"""Exit times far beyond 1/rounding, by the weighted scheme, against quadrature and special functions."""

import numpy as np
import pytest

import fpsolver as fp
from fpsolver.landscapes import curved_well, double_well

# mean exit times of the quartic well, dX = -f' dt + sqrt(2 eps) dW, by quadrature of the exact integral
ACROSS = {0.1: 66.268626364918, 0.025: 102108.36545717, 0.005: 2.3212086857312e22, 0.0025: 1.1988319200419e44}
TO_THE_SADDLE = {0.1: 30.821302472666, 0.025: 51050.7025086, 0.0025: 5.9941596002097e43}


def weighted(loss, temperature, domain, absorbing, **options):
    return fp.Generator(fp.Langevin(loss, temperature), domain, absorbing, scheme="weighted", **options)


@pytest.mark.parallel
@pytest.mark.parametrize("eps", ACROSS)
def test_exit_time_across_a_double_well(eps):
    tau = fp.mean_exit_time(weighted(double_well, eps, fp.Domain.interval(-3, 1, 120), ["right"]))
    assert tau.at(-1.0) == pytest.approx(ACROSS[eps], rel=1e-6)


@pytest.mark.parametrize("eps", TO_THE_SADDLE)
def test_exit_time_to_the_saddle_of_a_double_well(eps):
    tau = fp.mean_exit_time(weighted(double_well, eps, fp.Domain.interval(-3, 0, 120), ["right"]))
    assert tau.at(-1.0) == pytest.approx(TO_THE_SADDLE[eps], rel=1e-6)


def test_error_at_a_high_barrier_falls_with_the_mesh():
    errors = []
    for n in (50, 100, 200):
        gen = weighted(double_well, 0.005, fp.Domain.interval(-3, 1, n), ["right"], degree=2)
        errors.append(abs(fp.mean_exit_time(gen).at(-1.0)[0] / ACROSS[0.005] - 1))
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    # exit times converge with order 2k, as eigenvalues do
    assert rates[-1] == pytest.approx(4, abs=0.4)


@pytest.mark.parametrize(
    ("R", "exact"),
    [(3, 2558.28339807794), (5, 13034898127.9042), (14.2, 2.33066359169116e86), (20, 2.31660655801505e172)],
)
def test_exit_time_of_an_ornstein_uhlenbeck_process(R, exact):
    """Of (-R, R) from 0: R² 2F2(1, 1; 3/2, 2; R²) for dX = -X dt + dW."""
    tau = fp.mean_exit_time(weighted(lambda x: x[0] ** 2 / 2, 0.5, fp.Domain.interval(-R, R, 1000), ["left", "right"]))
    assert tau.at(0.0) == pytest.approx(exact, rel=1e-4)


def graded_disk(h):
    """Cells that shrink towards the circle like their distance to it, where the exit layer is."""
    domain = fp.Domain.disk((0, 0), 1, h)
    x = domain.mesh.geometry.x
    r = np.linalg.norm(x, axis=1, keepdims=True)
    x *= 2 - np.minimum(r, 1.0)
    return domain


@pytest.mark.parametrize(
    ("eps", "exact"), [(0.05, 1244.67458774199), (0.02, 1502975451.36473), (0.005, 1.35777637242694e41)]
)
def test_exit_time_of_a_radial_ornstein_uhlenbeck_process(eps, exact):
    """½ (Ei(z) - ln z - γ), z = 1/(2 eps), from the centre of the unit disk."""
    tau = fp.mean_exit_time(weighted(lambda x: (x[0] ** 2 + x[1] ** 2) / 2, eps, graded_disk(0.09), ["boundary"]))
    assert tau.at((0.0, 0.0)) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parallel
def test_curved_well_agrees_with_the_plain_scheme_where_that_one_works():
    domain = fp.Domain.rectangle((-1.7, -1.1), (0.0, 1.3), (24, 24))
    values = [
        fp.mean_exit_time(fp.Generator(fp.Langevin(curved_well, 0.02), domain, ["right"], scheme=s)).at((-1.0, 0.0))[0]
        for s in ("weighted", "dg")
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_second_moment_is_that_of_an_exponential_law():
    first, second = fp.exit_time_moments(weighted(double_well, 0.005, fp.Domain.interval(-3, 1, 100), ["right"]), 2)
    assert second.at(-1.0)[0] == pytest.approx(2 * first.at(-1.0)[0] ** 2, rel=1e-9)


def test_logarithm_of_an_exit_time():
    tau = fp.mean_exit_time(weighted(double_well, 0.0025, fp.Domain.interval(-3, 1, 100), ["right"]))
    assert tau.log_at(-1.0) == pytest.approx(101.49509177451, abs=1e-6)


@pytest.mark.parallel
def test_an_answer_lost_to_rounding_is_refused():
    gen = fp.Generator(fp.Langevin(double_well, 0.005), fp.Domain.interval(-3, 1, 100), ["right"], scheme="galerkin")
    with pytest.raises(fp.NotConverged, match=r"DIVERGED_ROUNDOFF.*scheme='weighted'"):
        fp.mean_exit_time(gen)


@pytest.mark.parallel
def test_weighted_scheme_needs_a_gibbs_density():
    with pytest.raises(ValueError, match="needs a known invariant density"):
        fp.Generator(fp.SDE(lambda x: -x[0], 0.1), fp.Domain.interval(-1, 1, 4), ["right"], scheme="weighted")


@pytest.mark.parallel
def test_weighted_evolution_and_distribution_are_those_of_the_plain_scheme():
    """The unknown of the forward equation is another one; the densities are not."""
    domain, start = fp.Domain.interval(-2.5, 1, 60), fp.gaussian(-1.0, 0.2)
    answers = []
    for scheme in ("weighted", "galerkin"):
        gen = fp.Generator(fp.Langevin(double_well, 0.1), domain, ["right"], scheme=scheme)
        flow = fp.evolve(gen, start, [1.0, 10.0])
        left = fp.exit_distribution(gen, start)
        q = fp.quasi_stationary(gen)
        again = fp.evolve(gen, flow[0], [9.0])
        answers.append([*flow.mass, *flow[1].at([-1.0, 0.0]), left.mean_time, q.rate, *q.at([-1.0]), *again.mass])
    assert np.allclose(answers[0], answers[1], rtol=2e-5)
    assert answers[0][-1] == pytest.approx(answers[0][1], rel=1e-5)  # 1 + 9 = 10


def test_isotropic_sgd_is_weighted_too():
    loss = lambda x: (x[0] ** 2 - 1) ** 2 / 4  # noqa: E731
    sgd = fp.SGD(loss, fp.Isotropic(2.0), learning_rate=0.02, batch_size=4)  # D = eta s / 2B = 0.005
    gen = fp.Generator(sgd, fp.Domain.interval(-3, 1, 120), ["right"], scheme="weighted")
    assert fp.mean_exit_time(gen).at(-1.0) == pytest.approx(ACROSS[0.005], rel=1e-6)
