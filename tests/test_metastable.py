"""Exit times far beyond 1/rounding, by the weighted scheme, against quadrature and special functions."""

import numpy as np
import pytest
import ufl

import fpsolver as fp
from fpsolver.discretisation.assembly import nodal_potential, nodal_weight, to_density
from fpsolver.landscapes import curved_well, double_well, double_well_2d

# mean exit times of the quartic well, dX = -f' dt + sqrt(2 eps) dW, by quadrature of the exact integral
ACROSS = {
    0.5: 6.6977579071112,
    0.1: 66.268626364918,
    0.025: 102108.36545717,
    0.0125: 2198644401.4083,
    0.005: 2.3212086857312e22,
    0.0025: 1.1988319200419e44,
}
TO_THE_SADDLE = {0.1: 30.821302472666, 0.05: 361.90375950092, 0.025: 51050.7025086, 0.0025: 5.9941596002097e43}


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
    return fp.Domain.disk((0, 0), 1, h).mapped(lambda x: x * (2 - np.minimum(np.linalg.norm(x, axis=0), 1.0)))


@pytest.mark.parametrize(
    ("eps", "exact"), [(0.05, 1244.67458774199), (0.02, 1502975451.36473), (0.005, 1.35777637242694e41)]
)
def test_exit_time_of_a_radial_ornstein_uhlenbeck_process(eps, exact):
    """½ (Ei(z) - ln z - γ), z = 1/(2 eps), from the centre of the unit disk."""
    tau = fp.mean_exit_time(weighted(lambda x: (x[0] ** 2 + x[1] ** 2) / 2, eps, graded_disk(0.09), ["boundary"]))
    assert tau.at((0.0, 0.0)) == pytest.approx(exact, rel=1e-3)


def three_wells(x, cos=np.cos):
    """Minima near 0, 1, 2; the deepest first, behind the highest barrier to the exit at 2.5."""
    return 0.125 * (1 - cos(2 * np.pi * x)) + 0.05 * x


def shallow_between(x, cos=np.cos):
    """Two deep wells; what leaves the first falls over the second, shallower barrier at once."""
    return 0.125 * (1 - cos(2 * np.pi * x)) + 0.2 * x - 0.1 * x**2


def outward(x, cos=np.cos):
    """The deepest well last."""
    return 0.125 * (1 - cos(2 * np.pi * x)) - 0.05 * x


STARTS = np.array([0.0, 0.3, 0.6, 1.0, 2.0, 2.4])


def exact_times(f, eps, a=-0.5, c=2.5):
    """E τ = ∫_x^c e^{f/eps} ∫_a^y e^{-f/eps} / eps with a reflecting, by Gauss quadrature of positive terms."""
    t, w = np.polynomial.legendre.leggauss(12)
    edges = np.unique(np.concatenate([np.linspace(a, c, 2001), STARTS]))
    half = np.diff(edges)[:, None] / 2
    x = edges[:-1, None] + half * (t + 1)
    integrals = np.array([np.polynomial.legendre.legint(row, lbnd=-1) for row in np.eye(12)])
    values, primitives = (np.polynomial.legendre.legvander(t, n) for n in (11, 12))
    within = primitives @ integrals.T @ np.linalg.inv(values)
    density = np.exp(-f(x) / eps) / eps
    mass = np.concatenate([[0], np.cumsum(density @ w * half[:, 0])])[:-1, None] + density @ within.T * half
    pieces = (np.exp(f(x) / eps) * mass) @ w * half[:, 0]
    after = np.concatenate([np.cumsum(pieces[::-1])[::-1], [0.0]])
    return after[np.searchsorted(edges, STARTS)]


@pytest.mark.parallel
@pytest.mark.parametrize("f", [three_wells, outward, shallow_between])
def test_several_wells_within_the_domain(f):
    """From all starts, wherever the other wells are; up to 3e40, where one split well would lose every digit."""
    gen = weighted(lambda x: f(x[0], ufl.cos), 0.02, fp.Domain.interval(-0.5, 2.5, 400), ["right"])
    for eps in (0.02, 0.004):
        tau = fp.mean_exit_time(gen.replace(temperature=eps))
        assert tau.stats["wells"] == 3
        assert tau.at(STARTS) == pytest.approx(exact_times(f, eps), rel=1e-7)


@pytest.mark.parallel
def test_three_wells_in_two_dimensions():
    """With a quadratic second direction the times stay those of one dimension: 2.7e40 at eps = 0.004."""
    loss = lambda x: three_wells(x[0], ufl.cos) + 2 * x[1] ** 2  # noqa: E731
    gen = weighted(loss, 0.02, fp.Domain.rectangle((-0.5, -0.5), (2.5, 0.5), (60, 12)), ["right"])
    for eps, tolerance in ((0.02, 1e-7), (0.004, 1e-4)):
        tau = fp.mean_exit_time(gen.replace(temperature=eps))
        assert tau.stats["wells"] == 3
        assert tau.at(np.column_stack([STARTS[:5], np.full(5, 0.05)])) == pytest.approx(
            exact_times(three_wells, eps)[:5], rel=tolerance
        )


def test_splitting_probabilities_at_a_high_barrier():
    """P(left) from each of three wells, both ends absorbing: ratios of ∫ e^{f/eps}, by quadrature."""
    eps = 0.01
    gen = weighted(lambda x: three_wells(x[0], ufl.cos), eps, fp.Domain.interval(-0.5, 2.5, 400), ["left", "right"])
    t, w = np.polynomial.legendre.leggauss(600)

    def scale(a, b):
        return w @ np.exp(three_wells((a + b) / 2 + (b - a) / 2 * t) / eps) * (b - a) / 2

    starts = [0.0, 1.0, 2.0]
    left, right = (fp.exit_probability(gen, part).at(starts) for part in ("left", "right"))
    assert left == pytest.approx([scale(x, 2.5) / scale(-0.5, 2.5) for x in starts], rel=1e-6)
    assert right == pytest.approx([scale(-0.5, x) / scale(-0.5, 2.5) for x in starts], rel=1e-6)


@pytest.mark.parallel
def test_exit_distribution_at_a_high_barrier():
    """Both ways out of a well at eps = 0.005: the forward problem agrees with the two backward ones."""
    loss = lambda x: x[0] ** 2 / 2 - x[0] ** 3 / 10  # noqa: E731
    gen = weighted(loss, 0.005, fp.Domain.interval(-0.76, 0.87, 200), ["left", "right"])
    tau, right = fp.mean_exit_time(gen), fp.exit_probability(gen, "right")
    assert tau.at(0.0) > 1e24
    for start in (-0.7, 0.0, 0.85):
        left = fp.exit_distribution(gen, start)
        assert left.probability["right"] == pytest.approx(right.at(start)[0], rel=1e-10)
        assert sum(left.probability.values()) == pytest.approx(1.0, rel=1e-9)
        assert left.mean_time == pytest.approx(tau.at(start)[0], rel=1e-10)


@pytest.mark.parallel
def test_curved_well_agrees_with_the_plain_scheme_where_that_one_works():
    domain = fp.Domain.rectangle((-1.7, -1.1), (0.0, 1.3), (24, 24))
    values = [
        fp.mean_exit_time(fp.Generator(fp.Langevin(curved_well, 0.02), domain, ["right"], scheme=s)).at((-1.0, 0.0))[0]
        for s in ("weighted", "dg")
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_curved_well_agrees_with_extrapolated_logarithms():
    """At eps = 0.01 dg has lost its digits, but ln τ − 1/(4 eps) − ln(π/√2), Kramers' law, is a power series in eps."""
    domain = fp.Domain.rectangle((-1.7, -1.1), (0.0, 1.3), (24, 24))
    plain = fp.Generator(fp.Langevin(curved_well, 0.02), domain, ["right"], scheme="dg")
    eps = np.array([0.032, 0.028, 0.024, 0.02, 0.017])
    tau = [fp.mean_exit_time(plain.replace(temperature=e)).at((-1.0, 0.0))[0] for e in eps]
    series = np.linalg.lstsq(eps[:, None] ** [1, 2, 3], np.log(tau) - 0.25 / eps - np.log(np.pi / np.sqrt(2)))[0]
    expected = 25 + np.log(np.pi / np.sqrt(2)) + 0.01 ** np.array([1, 2, 3]) @ series
    found = np.log(fp.mean_exit_time(weighted(curved_well, 0.01, domain, ["right"])).at((-1.0, 0.0))[0])
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parallel
def test_starts_high_above_the_well_have_its_exit_time():
    """Cells in which the density varies by e^50 resolve nothing, and must not spoil what is known: paths slide down."""
    domain = fp.Domain.rectangle((-2.4, -2.0), (0.0, 2.0), (16, 8))
    gen = weighted(lambda x: double_well(x) + x[1] ** 2 / 2, 0.0125, domain, ["right"])
    tau = fp.mean_exit_time(gen)
    exact = 2198644401.4083 / 2 * np.array([1.0, 1.0, 1.0, 1.0])
    assert tau.at([(-1.0, 0.0), (-2.39, 1.99), (-2.2, 0.0), (-1.0, 1.9)]) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parallel
def test_meshes_that_resolve_no_exit_are_refused_and_refined():
    """Cells over which the density falls by e^38 where paths leave give 1e72 for 2.3e86, with a small error bar."""
    gen = weighted(lambda x: x[0] ** 2 / 2, 0.5, fp.Domain.interval(-14.2, 14.2, 20), ["left", "right"])
    for verb in (fp.mean_exit_time, fp.quasi_stationary):
        with pytest.raises(fp.NotConverged, match=r"DIVERGED_UNRESOLVED.*resolves no exit"):
            verb(gen)
    found, exact = fp.mean_exit_time(gen, start=0.0, rtol=1e-2), 2.33066359169116e86
    assert abs(float(found) - exact) < 2 * found.error[0] < 2e-2 * exact
    # in the plane it is the quadrature across the pass that fails: 23 % with an error bar of 4 %
    domain = fp.Domain.rectangle((-2.0, -1.2), (1.0, 1.2), (16, 8))
    with pytest.raises(fp.NotConverged, match="resolves no exit"):
        fp.mean_exit_time(weighted(double_well_2d, 0.0025, domain, ["right"]))


@pytest.mark.parallel
def test_plain_rates_on_meshes_that_miss_a_barrier_are_refused():
    """1e-12 and 1e-6 for 4e-23: positive, far above rounding, and wrong."""
    process = fp.Langevin(double_well_2d, 0.00625)
    for n in ((16, 8), (8, 4)):
        gen = fp.Generator(process, fp.Domain.rectangle((-2.0, -1.2), (1.0, 1.2), n), ["right"], scheme="dg")
        with pytest.raises(fp.NotConverged, match=r"DIVERGED_UNRESOLVED.*degree 5|ROUNDOFF"):
            fp.quasi_stationary(gen)


@pytest.mark.parallel
def test_barriers_are_as_high_as_the_exit_on_coarse_meshes_too():
    """The last vertex before the exit is at 14 temperatures, the exit at 25."""
    process = fp.Langevin(lambda x: x[0] ** 2 / 2, 0.02)
    for n in (2, 8):
        gen = fp.Generator(process, fp.Domain.interval(-1, 1, n), ["left", "right"])
        assert gen.scheme == "weighted"


@pytest.mark.parallel
def test_weights_of_densities_and_nodes_agree_where_cells_resolve_nothing():
    gen = weighted(lambda x: x[0] ** 2 / 2, 0.02, fp.Domain.interval(-4, 4, 30), ["right"])
    one = gen.G.createVecRight()
    one.set(1.0)
    weight = nodal_weight(gen)
    assert np.allclose(to_density(gen, one).x.array, weight, rtol=1e-12, atol=0)
    clipped = weight > 1e3 * np.exp(np.maximum(gen.weak.offset.value - nodal_potential(gen), -600.0))
    assert gen.domain.comm.allreduce(int(clipped.sum())) > 0, "some cells are flat"


@pytest.mark.parallel
def test_auto_takes_weights_at_high_barriers_only():
    domain = fp.Domain.interval(-2, 1, 40)
    for eps, scheme in ((0.1, "galerkin"), (0.01, "weighted")):
        assert fp.Generator(fp.Langevin(double_well, eps), domain, ["right"]).scheme == scheme
    # where nothing absorbs, or down a slope, there is no barrier; nor a weight without a Gibbs density
    assert fp.Generator(fp.Langevin(double_well, 0.01), domain).scheme != "weighted"
    assert fp.Generator(fp.Langevin(lambda x: -x[0], 0.01), domain, ["right"]).scheme != "weighted"
    sde = fp.SDE(lambda x: (x[0] - x[0] ** 3,), 0.01)
    assert fp.Generator(sde, domain, ["right"]).scheme != "weighted"


def kinetic(beta):
    process = fp.SDE(lambda x: (x[1], x[0] - x[0] ** 3 - x[1]), ((0, 0), (0, 1.0 / beta)))
    return fp.Generator(process, fp.Domain.rectangle((-2.0, -1.6), (0.8, 1.6), (16, 16)), ["right"])


@pytest.mark.parametrize("beta", [40.0, 80.0])
def test_claimed_digits_of_a_kinetic_process_are_there(beta):
    """Another order of elimination changes what rounding has taken, and no more digits than that."""
    gen = kinetic(beta)
    tau = [fp.mean_exit_time(gen, options={"mat_mumps_icntl_7": order}) for order in (6, 3, 2)]
    values = np.array([t.at((-1.0, 0.0))[0] for t in tau])
    spread, claimed = np.ptp(values) / values[0], tau[0].stats["roundoff"]
    assert spread < claimed < 1e5 * spread
    assert spread < 10.0 ** -tau[0].stats["digits"]
    assert f"digits={tau[0].stats['digits']}" in repr(tau[0])


def test_second_moment_is_that_of_an_exponential_law():
    first, second = fp.exit_time_moments(weighted(double_well, 0.005, fp.Domain.interval(-3, 1, 100), ["right"]), 2)
    assert second.at(-1.0)[0] == pytest.approx(2 * first.at(-1.0)[0] ** 2, rel=1e-9)


def test_logarithm_of_an_exit_time():
    tau = fp.mean_exit_time(weighted(double_well, 0.0025, fp.Domain.interval(-3, 1, 100), ["right"]))
    assert np.log(tau.at(-1.0)) == pytest.approx(101.49509177451, abs=1e-6)


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


@pytest.mark.parallel
def test_exit_law_at_a_high_barrier():
    """The occupation density integrates to the exit time, and all of it leaves."""
    gen = weighted(double_well, 0.0025, fp.Domain.interval(-3, 0, 120), ["right"])
    law = fp.exit_distribution(gen, -1.0)
    assert law.probability["right"] == pytest.approx(1, abs=1e-8)
    assert law.mean_time == pytest.approx(TO_THE_SADDLE[0.0025], rel=1e-6)


# ---------------------------------------------------------------- evolution and modes of a metastable process


def metastable(dim, barrier):
    """The double well on the left of its upper minimum, absorbed there; its generator and a point of the well."""
    eps = 0.25 / barrier
    if dim == 1:
        return fp.Generator(fp.Langevin(double_well, eps), fp.Domain.interval(-2, 1, 60), ["right"]), -1.0
    domain = fp.Domain.rectangle((-2.0, -1.2), (1.0, 1.2), (16, 8) if barrier < 60 else (24, 16))
    return fp.Generator(fp.Langevin(double_well_2d, eps), domain, ["right"]), (-1.0, 0.0)


@pytest.mark.parallel
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("eps", [0.0125, 0.005, 0.0025])
def test_quasi_stationary_rate_is_one_over_the_exit_time(dim, eps):
    """λ E τ = 1 but for the time to settle in the well; the density there by quadrature."""
    gen, start = metastable(dim, 0.25 / eps)
    assert gen.scheme == "weighted"
    q = fp.quasi_stationary(gen)
    tau = fp.mean_exit_time(gen).at(start)[0]
    assert q.rate * tau == pytest.approx(1.0, abs=1e-8)
    if dim == 1:
        t, w = np.polynomial.legendre.leggauss(800)
        mass = w @ np.exp(-(((t - 1) ** 2 - 1) ** 2) / (4 * eps))  # in (-2, 0)
        assert q.at(start) == pytest.approx(1 / mass, rel=1e-6)
        assert 1 / q.rate == pytest.approx(ACROSS[eps], rel=1e-6 if eps > 0.005 else 1e-3)


@pytest.mark.parallel
@pytest.mark.parametrize("dim", [1, 2])
def test_evolution_over_an_exit_time(dim):
    """At a barrier of 20 double precision still sees the loss; rounding is estimated to cost 5e-4."""
    gen, start = metastable(dim, 20.0)
    tau = fp.mean_exit_time(gen).at(start)[0]
    times = np.array([10.0, tau, 2 * tau])
    exact = np.exp(-times / tau)
    flow = fp.evolve(gen, fp.gaussian(start, 0.06), times)
    assert flow.mass == pytest.approx(exact, rel=5e-4)
    assert flow.outflux[1:] == pytest.approx(1 - exact[1:], rel=5e-4)
    assert fp.survival(gen, start, times) == pytest.approx(exact, rel=5e-4)
    assert fp.spectrum(gen, 2).timescales[0] == pytest.approx(tau, rel=1e-3)


@pytest.mark.parallel
def test_survival_takes_its_slow_mode_from_capacities():
    """One long step on a coarse mesh once gave 0.456 for 1/e."""
    for n, rtol in ((13, 2e-3), (40, 3e-6)):
        gen = fp.Generator(fp.Langevin(double_well, 0.0125), fp.Domain.interval(-2.5, 1, n), ["right"])
        for t in (0.01, 1.0, 3.0):
            found = fp.survival(gen, -1.0, t * ACROSS[0.0125])
            assert found == pytest.approx(np.exp(-t), rel=rtol)


@pytest.mark.parallel
@pytest.mark.parametrize("dim", [1, 2])
def test_loss_below_rounding_is_refused(dim):
    """At a barrier of 40 the well keeps its mass as long as one can tell; what can not be told is not printed."""
    gen, start = metastable(dim, 40.0)
    tau = fp.mean_exit_time(gen).at(start)[0]
    times, narrow = [1.0, 10.0, tau], fp.gaussian(start, 0.05)
    for call in (lambda: fp.evolve(gen, narrow, times), lambda: fp.backward(gen, 1.0, times)):
        with pytest.raises(fp.NotConverged, match=r"DIVERGED_ROUNDOFF.*quasi_stationary") as info:
            call()
        assert list(info.value.partial.times) == times[:2]
    assert fp.evolve(gen, narrow, times[:2]).mass == pytest.approx([1.0, 1.0], abs=1e-6)
    with pytest.raises(fp.NotConverged, match=r"DIVERGED_ROUNDOFF.*slowest rate, 9\.5e-19"):
        fp.spectrum(gen, 2)
    if dim == 1:  # in the plane this mesh does not resolve the barrier, which is no matter of rounding
        plain = fp.Generator(gen.process, gen.domain, ["right"], scheme="dg")
        with pytest.raises((fp.NotConverged, ValueError), match=r"ROUNDOFF|real negative"):
            fp.quasi_stationary(plain)


@pytest.mark.parallel
def test_wide_initial_densities_need_another_scheme():
    """∫ p²/w is 1e26 for a Gaussian twice as wide as the well: its error would be that of w's tails."""
    gen, start = metastable(1, 20.0)
    with pytest.raises(ValueError, match=r"too wide for scheme 'weighted'.*scheme='dg'"):
        fp.evolve(gen, fp.gaussian(start, 0.1), [0.1])
    plain = fp.Generator(gen.process, gen.domain, ["right"], scheme="dg")
    x = np.array([-1.1, -1.0, -0.9])
    narrow = fp.gaussian(start, 0.065)  # somewhat wider than the well
    a, b = (fp.evolve(g, narrow, [0.1])[0].at(x) for g in (gen, plain))
    assert a == pytest.approx(b, rel=1e-5)
