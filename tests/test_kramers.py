"""Eyring–Kramers estimates against exact exit times (quadrature of the one-dimensional formula)."""

import numpy as np
import pytest
from reference import double_well_exit_time, double_well_minima, exit_time_1d
from test_errors import refused

import fpsolver as fp
from fpsolver.landscapes import curved_well, double_well, double_well_2d, muller_brown, three_hole, tilted_well


def estimate(process, domain, start, absorbing=None):
    return fp.diagnostics.eyring_kramers(process, domain, start=start, absorbing=absorbing)


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("eps", "exact"), [(0.025, 102108.36545717), (0.005, 2.3212086857312e22), (0.0025, 1.1988319200419e44)]
)
def test_double_well_and_its_next_order(eps, exact):
    k = estimate(fp.Langevin(double_well, eps), fp.Domain.interval(-3, 1, 20), -1.7, "right")
    assert k.holds and k.temperature == eps
    assert k.log_time == pytest.approx(np.log(2 * np.pi / np.sqrt(2)) + 0.25 / eps, rel=1e-13)
    assert k.minimum.point[0] == pytest.approx(-1) and k.saddle.point[0] == pytest.approx(0, abs=1e-12)
    assert k.next_order == pytest.approx(1.5, rel=1e-12)
    # measured: 9.5 eps² at eps = 0.025, 7.3 eps² at 0.0025
    assert abs(exact / k.time - 1 - 1.5 * eps) < 12 * eps**2


def test_half_the_paths_return_where_the_boundary_passes_through_the_saddle():
    k = estimate(fp.Langevin(double_well, 0.0025), fp.Domain.interval(-3, 0, 20), -1.7, ["right"])
    assert k.on_boundary and k.holds
    assert 5.9941596002097e43 / k.time == pytest.approx(1 + 1.5 * 0.0025, abs=12 * 0.0025**2)
    flat = estimate(
        fp.Langevin(double_well_2d, 0.02), fp.Domain.rectangle((-2, -1), (0, 1), (6, 6)), (-1.3, 0.4), "right"
    )
    # transversal direction: stiffness one at both points
    assert (
        flat.on_boundary and flat.holds and flat.log_time == pytest.approx(np.log(np.pi / np.sqrt(2)) + 12.5, rel=1e-12)
    )


@pytest.mark.parallel
@pytest.mark.parametrize("side", [0, 1])
def test_tilted_well_both_ways(side):
    """The error of the corrected estimate is of second order."""
    minima, errors = double_well_minima(0.1), []
    for eps in (0.01, 0.005):
        k = estimate(fp.Langevin(tilted_well, eps), fp.Domain.interval(-2.5, 2.5, 20), (-1.6, 0.5)[side])
        assert k.minimum.point[0] == pytest.approx(minima[side], abs=1e-12)
        assert k.barrier == pytest.approx((0.357411589373857, 0.157664957347606)[side], rel=1e-12)
        # from left to right by the mirror image of the tilt
        exact = double_well_exit_time(
            eps, *((minima[1], 0.1, minima[0]) if side == 0 else (-minima[0], -0.1, -minima[1]))
        )
        errors.append(exact / k.time - 1 - k.next_order * eps)
    assert errors[0] == pytest.approx(4 * errors[1], rel=0.25)
    assert abs(errors[1]) < 5e-4


def test_printed_exact_times_of_the_tilted_well():
    for start, exact in ((-1.6, 5890.9195316605), (0.5, 132.916625140674)):
        k = estimate(fp.Langevin(tilted_well, 0.05), fp.Domain.interval(-2.5, 2.5, 20), start)
        assert exact / k.time == pytest.approx(1 + k.next_order * 0.05, abs=0.055)


@pytest.mark.parallel
def test_prefactor_in_the_plane_against_the_weighted_scheme():
    """Mixed second derivatives enter through the determinants."""
    eps = 0.01
    domain = fp.Domain.rectangle((-1.6, -0.9), (1, 0.9), (26, 18))
    process = fp.Langevin(curved_well, eps)
    k = estimate(process, domain, (-1.2, 0.3), ["right"])
    tau = fp.mean_exit_time(fp.Generator(process, domain, ["right"], scheme="weighted"))
    assert k.saddle.point == pytest.approx((0, -0.5), abs=1e-12)
    assert k.next_order is None
    assert k.log_time == pytest.approx(np.log(tau.at((-1.0, 0.0))[0]), abs=5 * eps)


@pytest.mark.parallel
def test_lowest_pass_of_mueller_brown():
    domain = fp.Domain.rectangle((-1.5, -0.2), (1.2, 2), (16, 16))
    k = estimate(fp.Langevin(muller_brown, 8.0), domain, (-0.8, 1.6))
    assert k.minimum.point == pytest.approx((-0.558223634633, 1.441725841805), abs=1e-11)
    assert k.saddle.point == pytest.approx((-0.822001558733, 0.624312802815), abs=1e-11)
    assert k.barrier == pytest.approx(-40.6648435087 + 146.6995172100, rel=1e-11)
    assert k.holds
    k = estimate(fp.Langevin(muller_brown, 8.0), domain, (0.7, 0.0))
    assert k.saddle.point == pytest.approx((0.212486582001, 0.292988325107), abs=1e-11)
    assert [p for p in k.failed if "barrier is only" in p]


def test_the_deepest_well_below_the_pass_is_the_one_that_is_left():
    """Three wells, exit in the right one: from the middle one paths fill the deep one on the left first."""
    f = lambda x: x[0] ** 6 / 6 - 5 * x[0] ** 4 / 4 + 2 * x[0] ** 2 + x[0] / 10  # noqa: E731
    roots, errors = np.sort(np.roots([1, 0, -5, 0, 4, 0.1]).real), []
    for eps in (0.014, 0.007):
        k = estimate(fp.Langevin(f, eps), fp.Domain.interval(-2.4, 2, 50), 0.1, "right")
        assert k.holds
        assert (*k.minimum.point, *k.saddle.point) == pytest.approx(roots[[0, 3]], abs=1e-12)
        force = lambda t: -(t**5 - 5 * t**3 + 4 * t + 0.1)  # noqa: E731
        exact = exit_time_1d(roots[0], -2.4, 2, force, lambda t, eps=eps: eps, reflecting=True)
        errors.append(exact / k.time - 1 - k.next_order * eps)
    assert errors[0] == pytest.approx(4 * errors[1], rel=0.25)
    assert abs(errors[1]) < 5e-4


def test_isotropic_sgd_has_a_temperature_and_other_noise_has_none():
    line = fp.Domain.interval(-3, 1, 20)
    k = estimate(fp.SGD(double_well, fp.Isotropic(2.0), 0.1, 4), line, -1.3, "right")
    assert k.temperature == pytest.approx(0.025) and k.holds
    assert k.time == estimate(fp.Langevin(double_well, 0.025), line, -1.3, "right").time
    k = estimate(fp.SGD(double_well, fp.Covariance([[2.0]]), 0.1, 4), line, -1.3, "right")
    assert np.isnan(k.time) and np.isnan(k.temperature) and "not isotropic" in k.failed[0]
    assert k.barrier == pytest.approx(0.25)


def test_failing_hypotheses_are_named():
    low = estimate(fp.Langevin(double_well, 0.1), fp.Domain.interval(-3, 1, 20), -1.3, "right")
    assert "only 2.5 temperatures" in low.failed[0] and np.isfinite(low.time)
    outside = estimate(fp.Langevin(double_well, 0.02), fp.Domain.interval(-1.6, -0.4, 20), -1.3, ["left", "right"])
    assert outside.saddle is None and np.isnan(outside.time) and "f = 0.1764" in outside.failed[0]
    beyond = estimate(fp.Langevin(double_well, 0.02), fp.Domain.interval(-3, 1.5, 20), -1.3, "right")
    assert beyond.saddle is None and "not a saddle" in beyond.failed[0]
    flat = lambda x: x[0] ** 6 / 9 - x[0] ** 4  # noqa: E731
    singular = estimate(fp.Langevin(lambda x: -flat(x), 0.02), fp.Domain.interval(-2.9, 2.9, 20), 1e-1)
    assert np.isnan(singular.time) and any("singular" in p for p in singular.failed)
    alone = estimate(fp.Langevin(lambda x: x[0] ** 2, 0.02), fp.Domain.interval(-2, 2, 8), 0.5)
    assert "nowhere to go" in alone.failed[0]
    holes = fp.Domain.rectangle((-2, -1.5), (2, 2.5), (10, 10))
    twins = estimate(fp.Langevin(three_hole, 0.1), holes, (0.1, 1.4))
    assert any("competes" in p for p in twins.failed)


@pytest.mark.parallel
def test_bad_input():
    line, well = fp.Domain.interval(-2.5, 2.5, 20), fp.Langevin(double_well, 0.02)
    refused(lambda: estimate(well, line, 3.0), ValueError, r"start: \(3.0,\) lies outside the mesh")
    refused(lambda: estimate(well, line, 0.0), ValueError, "not a minimum")
    refused(lambda: estimate(well, line, -1.0, "rigth"), ValueError, "'rigth'", "left, right")
    refused(lambda: estimate(fp.SDE(0.0, 1.0), line, 0.5), TypeError, "SDE has no loss")
    refused(lambda: estimate(well, fp.Domain.interval(-0.8, 0.8, 8), 0.5), ValueError, "not a minimum inside the mesh")


def test_gradient_flows_of_stiff_losses_are_silent(capfd):
    """The terminal belongs to the user: solvers in Fortran would write there past Python."""
    domain = fp.Domain.rectangle((-1.5, -0.5), (1.2, 2.1), (12, 12))
    found = fp.diagnostics.eyring_kramers(fp.Langevin(fp.landscapes.muller_brown, 15.0), domain, start=(1.1, 1.9))
    assert found.minimum.point == pytest.approx(fp.landscapes.muller_brown.minima[0], abs=1e-6)
    assert capfd.readouterr() == ("", "")
