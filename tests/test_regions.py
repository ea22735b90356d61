"""Committors, transition rates and first-passage times between regions, against quadrature and closed forms."""

import numpy as np
import pytest
import ufl

import fpsolver as fp
from fpsolver.discretisation.assembly import nodal_potential
from fpsolver.landscapes import double_well, muller_brown, three_hole, tilted_well

# dX = -f' dt + sqrt(2 eps) dW; minima and times by quadrature of the exact integrals
MINIMA = (-1.0466805318046, 0.945649273923591)
TILTED = {0.1: (177.969726331525, 29.6085983168208), 0.05: (5890.9195316605, 132.916625140674)}


def left(x):
    return x[0] <= -1


def right(x):
    return x[0] >= 1


def kinetic(beta, friction, n):
    process = fp.SDE(lambda x: (x[1], x[0] - x[0] ** 3 - friction * x[1]), ((0, 0), (0, friction / beta)))
    return fp.Generator(process, fp.Domain.rectangle((-2.5, -2.5), (2.5, 2.5), (n, n)), degree=3)


@pytest.mark.parallel
@pytest.mark.parametrize("scheme", ["galerkin", "dg", "weighted"])
def test_rate_and_committor_of_a_double_well(scheme):
    """Between x <= -1 and x >= 1 at eps = 0.1: ν and q(-0.2) by quadrature."""
    gen = fp.Generator(fp.Langevin(double_well, 0.1), fp.Domain.interval(-3, 3, 120), scheme=scheme)
    r = fp.transition_rate(gen, left, right)
    # with dg the error of the invariant density, 1.4e-8 on this mesh, remains
    assert r.rate == pytest.approx(0.00754504850072909, rel=1e-10 if scheme != "dg" else 3e-8)
    assert r.committor.at(-0.2) == pytest.approx(0.285308791833179, rel=1e-9)
    assert np.allclose(r.committor.at([-2.0, -1.5, 1.5, 2.0]), [0, 0, 1, 1], atol=1e-12)
    assert r.share_A == pytest.approx(0.5, abs=1e-8)
    assert r.k_AB == pytest.approx(2 * r.rate, rel=3e-8)
    assert r.k_BA == pytest.approx(2 * r.rate, rel=3e-8)
    assert [s.resolved for s in r.sizes] == pytest.approx([2.0, 2.0])


def test_rate_over_a_very_high_barrier():
    """ν Z = (∫_{-1}^1 e^{f/eps} / eps)^{-1} in one dimension, by quadrature, down to 1e-45."""
    for eps in (0.02, 0.005, 0.0025):
        t, w = np.polynomial.legendre.leggauss(400)
        f = (t**2 - 1) ** 2 / 4
        gen = fp.Generator(fp.Langevin(double_well, eps), fp.Domain.interval(-3, 3, 240), scheme="weighted")
        r = fp.transition_rate(gen, left, right)
        assert r.capacity == pytest.approx(eps / (w @ np.exp(f / eps)), rel=1e-7)


@pytest.mark.parametrize("scheme", ["galerkin", "weighted"])
@pytest.mark.parametrize("eps", TILTED)
def test_first_passages_of_a_tilted_well(eps, scheme):
    domain = fp.Domain.interval(-3, 3, 240)  # of whose nodes none is at a minimum
    gen = fp.Generator(fp.Langevin(tilted_well, eps), domain, scheme=scheme)
    passage = fp.first_passage(gen, {"L": lambda x: x[0] <= MINIMA[0], "R": lambda x: x[0] >= MINIMA[1]})
    assert passage.solutions["R"].at(MINIMA[0]) == pytest.approx(TILTED[eps][0], rel=1e-9)
    assert passage.solutions["L"].at(MINIMA[1]) == pytest.approx(TILTED[eps][1], rel=1e-9)
    # starting from the uniform law on x <= minimum instead takes a little longer
    assert passage.times.diagonal() == pytest.approx(0)
    assert TILTED[eps][0] < passage.times[0, 1] < 1.01 * TILTED[eps][0]


@pytest.mark.parallel
def test_points_with_a_radius_start_at_the_point():
    gen = fp.Generator(fp.Langevin(double_well, 0.1), fp.Domain.interval(-3, 3, 120))
    passage = fp.first_passage(gen, {"L": (-1.0, 0.1), "R": (1.0, 0.1)})
    target = fp.first_passage(gen, {"L": (-1.0, 0.1), "R": lambda x: x[0] >= 0.9})
    # from the left, the right region is entered at x = 0.9 in both
    assert passage.times[0, 1] == pytest.approx(target.times[0, 1], rel=1e-9)
    assert passage.times[0, 1] == pytest.approx(passage.times[1, 0], rel=1e-9)
    assert passage.solutions["R"].at(-1.0)[0] == pytest.approx(passage.times[0, 1], rel=1e-14)
    assert "R" in repr(passage)


@pytest.mark.parallel
@pytest.mark.parametrize("scheme", ["galerkin", "dg", "weighted"])
def test_capacity_of_an_annulus(scheme):
    """Between the circles 1 and 2, Brownian motion with D = I: capacity 2π / ln 2, committor ln r / ln 2."""
    gen = fp.Generator(fp.Langevin(0, 1.0), fp.Domain.annulus((0, 0), 1, 2, 0.25), scheme=scheme, degree=3)
    r = fp.transition_rate(gen, "inner", "outer")
    assert r.rate * 3 * np.pi == pytest.approx(9.06472028365439, rel=2e-5)
    assert r.committor.at((1.5, 0)) == pytest.approx(0.584962500721156, rel=2e-5)
    if scheme == "weighted":
        assert r.capacity == pytest.approx(9.06472028365439, rel=2e-5)


@pytest.mark.parallel
def test_rates_of_a_kinetic_process_balance():
    """Non-reversible and degenerate: as many transitions one way as the other; from (0, 0) each is as likely."""
    gen = kinetic(5.0, 1.0, 12)
    A, B = lambda x: x[0] <= -0.8333, lambda x: x[0] >= 0.8333
    ab, ba = fp.transition_rate(gen, A, B), fp.transition_rate(gen, B, A)
    assert ab.rate == pytest.approx(ba.rate, rel=1e-8)
    assert ab.committor.at((0.0, 0.0)) == pytest.approx(0.5, abs=1e-8)
    assert ab.committor.at((-0.5, 1.0))[0] + ba.committor.at((-0.5, 1.0))[0] == pytest.approx(1.0, abs=1e-10)
    # time reversal turns the velocity: q(x, v) = 1 - q(-x, -v) by symmetry of the well
    assert ab.committor.at((-0.5, 1.0))[0] == pytest.approx(1 - ab.committor.at((0.5, -1.0))[0], abs=2e-4)
    assert ab.share_A == pytest.approx(0.5, abs=1e-3)  # 4e-4 here, 5e-6 on 16 x 16 cells of degree 4


@pytest.mark.parallel
def test_rate_of_a_rotating_process():
    """b = -x + 3 (-y, x) carries a stationary current but leaves radial answers alone: q = ∫ e^{r²/2eps} dr / r."""
    eps = 0.1
    domain = fp.Domain.annulus((0, 0), 0.5, 1.5, 0.12)
    gen = fp.Generator(fp.SDE(lambda x: (-x[0] - 3 * x[1], -x[1] + 3 * x[0]), eps), domain)
    r = fp.transition_rate(gen, "inner", "outer")
    t, w = np.polynomial.legendre.leggauss(60)
    radius = 1 + t / 2
    resistance = w @ (np.exp(radius**2 / (2 * eps)) / radius) / 2
    mass = 2 * np.pi * eps * (np.exp(-0.125 / eps) - np.exp(-1.125 / eps))
    assert r.rate == pytest.approx(2 * np.pi * eps / resistance / mass, rel=1e-4)
    assert r.committor.at((0.0, 1.0)) == pytest.approx(0.00495001922735013, rel=1e-4)


def test_capacity_between_outer_wells_while_the_inner_one_floats():
    """Three wells in one dimension: capacity eps / ∫ e^{f/eps} between x <= 0 and x >= 2, by quadrature."""
    t, w = np.polynomial.legendre.leggauss(800)
    f = 0.125 * (1 - np.cos(2 * np.pi * (t + 1))) + 0.05 * (t + 1)
    for eps in (0.05, 0.01, 0.004):
        langevin = fp.Langevin(lambda x: 0.125 * (1 - ufl.cos(2 * np.pi * x[0])) + 0.05 * x[0], eps)
        gen = fp.Generator(langevin, fp.Domain.interval(-0.5, 2.5, 240), scheme="weighted")
        r = fp.transition_rate(gen, lambda x: x[0] <= 0, lambda x: x[0] >= 2)
        lowest = nodal_potential(gen).min() * eps
        assert r.capacity == pytest.approx(eps / (w @ np.exp((f - lowest) / eps)), rel=1e-6)


@pytest.mark.parallel
def test_three_wells_by_regions():
    """Transition rates of the weighted and the plain scheme agree where both work."""
    domain = fp.Domain.rectangle((-2.5, -2.0), (2.5, 3.0), (25, 25))
    A, B = ((-1.048, -0.042), 0.3), ((1.048, -0.042), 0.3)
    rates = []
    for scheme in ("galerkin", "weighted"):
        gen = fp.Generator(fp.Langevin(three_hole, 0.2), domain, scheme=scheme, degree=6)
        rates.append(fp.transition_rate(gen, A, B))
    assert rates[0].rate == pytest.approx(rates[1].rate, rel=1e-5)
    assert rates[0].share_A == pytest.approx(0.5, abs=1e-6)
    assert rates[1].sizes[0].asked == pytest.approx(0.09 * np.pi, rel=1e-2)


def test_high_barriers_between_wells_choose_relative_accuracy():
    """Müller and Brown's landscape; by the law of Eyring and Kramers 1.12e-13, to first order in the temperature."""
    domain = fp.Domain.rectangle((-1.8, -0.5), (1.2, 2.2), (40, 36))
    A, B, rates = ((-0.558, 1.442), 0.3), ((0.623, 0.028), 0.3), []
    for scheme in ("auto", "weighted"):
        gen = fp.Generator(fp.Langevin(muller_brown, 3.0), domain, scheme=scheme)
        rates.append(fp.transition_rate(gen, A, B).rate)
    assert rates[0] == rates[1] == pytest.approx(1.12e-13, rel=0.15, abs=0)


@pytest.mark.parallel
def test_regions_have_names():
    """Brownian motion from a named region to another one, as by markers; the first is a polygon, the last a ball."""
    square = fp.Domain.rectangle((0, 0), (4, 2), (9, 5))
    domain = square.with_region("strip", [(0, 0), (1, 0), (1, 2), (0, 2)]).with_region("far", lambda x: x[0] > 3)
    assert domain.regions == ("strip", "far") and square.regions == ()
    gen = fp.Generator(fp.SDE((0.0, 0.0), 1.0), domain)
    q = fp.committor(gen, "strip", "far")
    assert q.at([(0.5, 1), (1.5, 0.3), (2, 1), (3.5, 1)]) == pytest.approx([0, 0.25, 0.5, 1], abs=1e-10)
    p = fp.exit_probability(fp.Generator(fp.SDE((0.0, 0.0), 1.0), domain, ["left"]), "far", start=(2.0, 1.0))
    assert float(p) == pytest.approx(2 / 3, abs=1e-10)
    disk = square.with_region("disk", ((2.0, 1.0), 0.5))
    assert fp.committor(fp.Generator(fp.SDE((0.0, 0.0), 1.0), disk), "left", "disk").at((2.0, 1.2)) == pytest.approx(1)
    for region, message in [("left", "already"), ("", "non-empty string"), ("x", "polygon")]:
        with pytest.raises(ValueError, match=message):
            square.with_region(region, 3.0)
    with pytest.raises(ValueError, match=r"no boundary part is called 'near'.*inside strip, far"):
        fp.committor(gen, "near", "far")


@pytest.mark.parallel
def test_committor_with_a_killing_boundary_counts_as_missing_b():
    """Brownian motion on (0, 4), killed at 0; B = (3, 4) and A = (1, 1.5): linear between, zero below A."""
    gen = fp.Generator(fp.SDE(0.0, 1.0), fp.Domain.interval(0, 4, 16), ["left"])
    q = fp.committor(gen, lambda x: (x[0] > 1) & (x[0] < 1.5), lambda x: x[0] > 3)
    assert q.at([0.5, 1.2, 2.0, 2.25, 3.5]) == pytest.approx([0, 0, 1 / 3, 0.5, 1], abs=1e-12)


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("A", "B", "message"),
    [
        (left, "top", "no boundary part is called 'top'"),
        (left, lambda x: x[0] > 9, "'B' is empty"),
        (left, lambda x: x[0] < 0, "overlap"),
        ("left", "left", "same part"),
        (left, (1.0, -0.1), "radius is -0.1; a positive number"),
        (left, ((1.0, 2.0), 0.1), "center is .*a sequence of 1 finite number "),
        (left, lambda x: x[0], "booleans"),
        (left, 3.0, "a name of a boundary part .* was expected"),
    ],
)
def test_bad_regions(A, B, message):
    gen = fp.Generator(fp.Langevin(double_well, 0.1), fp.Domain.interval(-3, 3, 24))
    with pytest.raises(ValueError, match=message):
        fp.committor(gen, A, B)


@pytest.mark.parallel
def test_stationary_questions_need_a_process_that_is_never_killed():
    gen = fp.Generator(fp.Langevin(double_well, 0.1), fp.Domain.interval(-3, 3, 24), ["right"])
    with pytest.raises(ValueError, match="right absorbs"):
        fp.transition_rate(gen, left, (1.0, 0.3))
    with pytest.raises(ValueError, match="right absorbs"):
        fp.first_passage(gen, {"L": left, "R": (1.0, 0.3)})
    with pytest.raises(ValueError, match="at least two regions"):
        fp.first_passage(fp.Generator(gen.process, gen.domain), {"L": left})


# -- Regions end where they are asked to


@pytest.mark.parallel
@pytest.mark.parametrize(("n", "low"), [(40, 0.757), (7, 0.757), (40, -0.2511)])
def test_first_passages_to_a_short_interval(n, low):
    """The mean time from −1.013 up to the end of a region of length 0.04, by quadrature."""
    gen = fp.Generator(fp.SDE(lambda x: (-x[0],), 0.5), fp.Domain.interval(-2, 2, n))
    passage = fp.first_passage(gen, {"a": ((-1.013,), 0.02), "b": ((low + 0.02,), 0.02)})
    y, w = np.polynomial.legendre.leggauss(60)

    def integral(f, a, b):
        return (b - a) / 2 * (w @ f((a + b) / 2 + (b - a) / 2 * y))

    inner = np.vectorize(lambda z: 2 * np.exp(z**2) * integral(lambda x: np.exp(-(x**2)), -2, z))
    assert passage.times[0, 1] == pytest.approx(integral(inner, -1.013, low), rel=1e-5 if n < 10 else 1e-8)
    for size in passage.sizes.values():
        assert size.resolved == pytest.approx(0.04, rel=1e-8) and size.asked == pytest.approx(size.resolved)


@pytest.mark.parametrize(("n", "radius"), [(8, 0.3), (13, 0.21)])
def test_committor_between_circles(n, radius):
    """ln(r/a)/ln(b/a) for Brownian motion, on a mesh that knows nothing of the circles."""
    gen = fp.Generator(fp.SDE((0.0, 0.0), 1.0), fp.Domain.rectangle((-2, -2), (2, 2), (n, n)))
    q = fp.committor(gen, ((0.1, 0.0), radius), lambda x: (x[0] - 0.1) ** 2 + x[1] ** 2 > 2.25)
    points = np.array([(0.8, 0.2), (-0.5, 0.6)])
    exact = np.log(np.hypot(points[:, 0] - 0.1, points[:, 1]) / radius) / np.log(1.5 / radius)
    assert q.at(points) == pytest.approx(exact, rel=5e-4)


def test_a_square_region_is_exact_but_for_its_corners():
    gen = fp.Generator(fp.SDE((0.0, 0.0), 1.0), fp.Domain.rectangle((0, 0), (1, 1), (5, 5)))
    square = lambda x: (np.abs(x[0] - 0.33) < 0.11) & (x[1] < 0.17)  # noqa: E731
    size = fp.first_passage(gen, {"square": square, "top": "top"}).sizes["square"]
    assert size.resolved == pytest.approx(0.22 * 0.17, rel=3e-4)
