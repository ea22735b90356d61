"""Bounds of mean exit times: lower ≤ exact ≤ upper on processes of every kind, and why a bound is missing."""

from functools import cache

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from reference import exit_time_1d
from test_errors import refused
from tools import box

import fpsolver as fp
from fpsolver.landscapes import double_well, double_well_2d

ALL = ["left", "right", "bottom", "top"]
bounds = fp.diagnostics.exit_bounds


def enclosed(found, exact, slack=1e-12):
    """Assert that each bound, and so the best ones, encloses the exact values; returns the bounds by name."""
    exact = np.asarray(exact, dtype=float)
    for b in found.bounds:
        if b.value is not None:
            assert b.holds and b.value.shape == exact.shape
            sign = 1 if b.kind == "lower" else -1
            assert (sign * (b.value - exact) <= slack * exact).all(), f"{b.kind} {b.name}: {b.value}, exact {exact}"
        else:
            assert not b.holds and b.why
    assert (found.lower <= found.computed * (1 + 1e-9)).all() and (found.computed <= found.upper * (1 + 1e-9)).all()
    assert found.consistent.all()
    return {(b.name, b.kind): b for b in found.bounds}


@pytest.mark.parallel
def test_the_four_bounds_of_a_small_well():
    """Worked by hand: quadratic 3.6; Arrhenius 4.863 with θ = 0.34 and the supremum over the whole interval."""
    gen = fp.Generator(fp.Langevin(double_well, 0.05), fp.Domain.interval(-1.6, -0.4, 40), ["left", "right"])
    found = bounds(gen, -1.0)
    exact = exit_time_1d(-1.0, -1.6, -0.4, lambda x: x - x**3, lambda x: 0.05)
    assert exact == pytest.approx(37.10424485, rel=1e-9)
    b = enclosed(found, [exact])
    assert b["quadratic", "lower"].value[0] == pytest.approx(3.6, rel=1e-4)
    assert b["arrhenius", "lower"].value[0] == pytest.approx(4.863, abs=2e-3)
    assert b["arrhenius", "lower"].constants["theta"] == pytest.approx(0.34, abs=0.02)
    assert b["arrhenius", "lower"].constants["pass"] == pytest.approx(0.1764, rel=1e-6)
    # with the bound G of the force in place of its sign it is 3.2e26
    assert 100 < b["one noisy direction", "upper"].value[0] < 3.2e26
    assert "drift wins" in b["quadratic", "upper"].why and not b["quadratic", "upper"].holds
    assert found.upper[0] - found.lower[0] < 0.03 * exact


@pytest.mark.parallel
def test_brownian_motion_is_known_exactly():
    """On an interval and, from the centre of a disk, all bounds but one are equalities."""
    found = bounds(fp.Generator(fp.SDE(0.0, 0.5), fp.Domain.interval(-1, 1, 10), ["left", "right"]), [0.0, 0.5])
    enclosed(found, [1.0, 0.75])
    assert (found.upper - found.lower < 1e-6).all()
    b = {(b.name, b.kind): b for b in found.bounds}
    assert b["quadratic", "lower"].value == pytest.approx([1, 0.75], rel=1e-2)
    assert b["residual certificate", "lower"].value == pytest.approx([1, 0.75], rel=1e-9)


@pytest.mark.parallel
def test_square():
    found = bounds(fp.Generator(fp.SDE((0, 0), 0.5), box(2, 6), ALL), [(0.0, 0.0), (0.5, 0.5)])
    enclosed(found, [0.589370826252111, 0.362289264875782])
    assert (found.upper - found.lower < 0.02).all()


@cache
def _disk():
    return fp.Domain.disk((0, 0), 1, 0.3)


@pytest.mark.parametrize("D", [((0.5, 0.0), (0.0, 0.0)), ((0.4, 0.2), (0.2, 0.1))])
def test_rank_one_noise_in_a_disk(D):
    """T = (1 - r²)/(2 tr D) for any constant D; the mesh's boundary is off by 3e-5."""
    x = np.array([(0.0, 0.0), (0.3, 0.2)])
    found = bounds(fp.Generator(fp.SDE((0, 0), D), _disk(), ["boundary"]), x)
    b = enclosed(found, (1 - (x**2).sum(axis=1)) / (2 * (D[0][0] + D[1][1])), 1e-4)
    assert b["one noisy direction", "upper"].holds  # the eigenvector of D is tried
    assert (found.upper - found.lower < 1e-3).all()


def test_ellipsoid():
    """T = (1 - xᵀAx)/(2 tr(DA)) with A = diag(1, 4)."""
    domain = fp.Domain.disk((0, 0), 1, 0.3).mapped(lambda x: (x[0], x[1] / 2))
    D, x = np.array([(0.3, 0.1), (0.1, 0.2)]), np.array([(0.0, 0.0), (0.2, 0.3)])
    exact = (1 - x[:, 0] ** 2 - 4 * x[:, 1] ** 2) / (2 * (D[0, 0] + 4 * D[1, 1]))
    found = bounds(fp.Generator(fp.SDE((0, 0), D.tolist()), domain, ["boundary"]), x)
    b = enclosed(found, exact, 1e-4)
    # the largest disk inside and the smallest around
    assert b["quadratic", "lower"].value[0] == pytest.approx(0.25, rel=2e-3)
    assert b["quadratic", "upper"].value[0] == pytest.approx(1.0, rel=2e-3)


@pytest.mark.parallel
def test_ball():
    found = bounds(
        fp.Generator(fp.SDE((0, 0, 0), 0.5), fp.Domain.ball((0, 0, 0), 1, 0.6), ["boundary"], degree=3),
        [(0.0, 0.0, 0.0), (0.5, 0.0, 0.0)],
    )
    # the boundary of this mesh is up to 2e-3 on either side of the sphere
    enclosed(found, [1 / 3, 0.25], 5e-3)
    assert (found.upper - found.lower < 0.02).all()


def rotation(x):
    return ((x[1] ** 2 / 2, -x[0] * x[1] / 2), (-x[0] * x[1] / 2, x[0] ** 2 / 2))


@pytest.mark.parallel
def test_rotational_noise_on_an_annulus():
    """T = 2 ln(2/r): every path moves outwards, at r = 1 too, though no direction is noisy everywhere."""
    gen = fp.Generator(fp.SDE((0, 0), rotation), fp.Domain.annulus((0, 0), 1, 2, 0.4), ["outer"])
    found = bounds(gen, [(1.5, 0.0), (0.0, -1.1)])
    b = enclosed(found, 2 * np.log(2 / np.array([1.5, 1.1])), 1e-4)
    assert b["quadratic", "upper"].holds
    assert "no direction is uniformly noisy" in b["one noisy direction", "upper"].why
    assert found.upper[0] < 1.02 * found.computed[0]


def test_transport_with_little_noise():
    """dX = dt + √0.02 dW on (0, 1): far centres make the quadratic bound that of the drift alone."""
    gen = fp.Generator(fp.SDE(1.0, 0.01), fp.Domain.interval(0, 1, 30), ["left", "right"])
    b = enclosed(bounds(gen, 0.5), [0.5])
    assert b["quadratic", "upper"].value[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parallel
def test_reflecting_walls_of_the_right_sign():
    """Reflected far up on the left the bounds of a well stay valid; all of them are tried."""
    gen = fp.Generator(fp.Langevin(double_well, 0.1), fp.Domain.interval(-2.5, 1, 40), ["right"])
    b = enclosed(
        bounds(gen, [-1.0, 0.5]),
        [exit_time_1d(x, -2.5, 1.0, lambda t: t - t**3, lambda t: 0.1, reflecting=True) for x in (-1.0, 0.5)],
    )
    assert b["one noisy direction", "upper"].holds and b["arrhenius", "lower"].holds
    assert b["arrhenius", "lower"].constants["pass"] == pytest.approx(0.25, abs=2e-3)


def test_walls_of_the_wrong_sign_spoil_a_bound():
    """Random acceleration of an unbounded v, cut off by reflection: noise along v leads to a wall, not out."""
    gen = fp.Generator(
        fp.SDE(lambda x: (x[1], 0 * x[0]), ((0, 0), (0, 1))),
        fp.Domain.rectangle((0, -4), (1, 4), (6, 24)),
        ["left", "right"],
    )
    b = enclosed(bounds(gen, [(0.5, 0.0), (0.5, 0.5)]), [1.155979148508, 1.037946622449], 1e-3)
    assert "reflecting walls" in b["one noisy direction", "upper"].why


def test_plane_well_within_fifteen_percent():
    gen = fp.Generator(
        fp.Langevin(double_well_2d, 0.05), fp.Domain.rectangle((-2, -1.5), (0, 1.5), (12, 12)), ["right"]
    )
    found = bounds(gen, (-1.0, 0.0))
    enclosed(found, [361.90375950092], 1e-6)
    assert found.upper[0] < 1.15 * found.computed[0] and found.lower[0] > 0.85 * found.computed[0]


def test_kinetic_process():
    """Noise in v alone carries every path out of a box; with energy conserved but for friction Arrhenius holds."""
    process = fp.MomentumSGD(lambda x: (x[0] ** 2 - 1) ** 2 / 4, fp.Isotropic(1.0), 0.2, 0.6)
    gen = fp.Generator(process, fp.Domain.rectangle((-2, -2), (0, 2), (10, 10)), ALL)
    found = bounds(gen, (-1.0, 0.0))
    b = enclosed(found, found.computed)
    assert b["one noisy direction", "upper"].holds and b["arrhenius", "lower"].holds
    assert b["arrhenius", "lower"].constants["pass"] == pytest.approx(0.25, abs=5e-3)
    with_walls = fp.Generator(process, fp.Domain.rectangle((-2, -2), (0, 2), (6, 6)), ["right"])
    b = {(b.name, b.kind): b for b in bounds(with_walls, (-1.0, 0.0)).bounds}
    assert "leaves through a reflecting wall" in b["one noisy direction", "upper"].why


DATA = [(-1.0, 0.3), (0.4, -0.9), (1.7, 0.8)]
LOSSES = [lambda w, a=a, y=y: (ufl.sin(a * w[0] + w[1]) - y) ** 2 / 2 + (w[0] ** 2 + w[1] ** 2) / 20 for a, y in DATA]


@pytest.mark.parallel
def test_sgd_with_per_sample_noise():
    gen = fp.Generator(fp.SGD(None, fp.PerSample(LOSSES), 2.0), fp.Domain.rectangle((-1, -1), (1.5, 1), (8, 8)), ALL)
    found = bounds(gen, [(0.155, 0.0), (0.8, 0.4)])
    b = enclosed(found, found.computed)
    assert b["quadratic", "lower"].holds and (found.lower > 0).all()


def test_two_samples_have_no_noisy_direction():
    gen = fp.Generator(
        fp.SGD(None, fp.PerSample(LOSSES[:2]), 2.0), fp.Domain.rectangle((-1, -1), (1.5, 1), (8, 8)), ALL
    )
    found = bounds(gen, (0.155, 0.0))
    why = {(b.name, b.kind): b.why for b in found.bounds}
    assert "no direction is uniformly noisy" in why["one noisy direction", "upper"]


@pytest.mark.parametrize("eps", [0.025, 0.005])
def test_high_barrier(eps):
    """Where the certificate has no chance the Arrhenius bound still tells the order of magnitude of the logarithm."""
    exact = {0.025: 102108.36545717, 0.005: 2.3212086857312e22}[eps]
    gen = fp.Generator(fp.Langevin(double_well, eps), fp.Domain.interval(-3, 1, 100), ["right"], scheme="weighted")
    found = bounds(gen, -1.0)
    b = enclosed(found, [exact], 1e-6)
    assert np.log(found.lower[0]) > 0.45 * np.log(exact)
    if eps == 0.005:
        assert "less than 1 was needed" in b["residual certificate", "upper"].why


@pytest.mark.parallel
def test_tabulated_loss():
    loss = fp.batched(lambda x: (x[:, 0] ** 2 - 1) ** 2 / 4)
    gen = fp.Generator(fp.Langevin(loss, 0.1), fp.Domain.interval(-3, 1, 40), ["right"])
    b = enclosed(bounds(gen, -1.0), [66.268626364918], 1e-6)
    assert "tabulated" in b["arrhenius", "lower"].why


def test_coefficients_that_are_infinite_in_a_corner():
    """A Bessel process, b = 1/x: T = (1 - x²)/3."""
    gen = fp.Generator(fp.SDE(lambda x: 1 / x[0], 0.5), fp.Domain.interval(0, 1, 20), ["right"])
    b = enclosed(bounds(gen, 0.2), [0.32])
    assert "not finite" in b["residual certificate", "upper"].why


def test_a_wrong_answer_is_not_consistent():
    gen = fp.Generator(fp.SDE(0.0, 0.5), fp.Domain.interval(-1, 1, 10), ["left", "right"])
    wrong = fp.mean_exit_time(gen)
    wrong.function.x.array[:] *= 1.1
    found = bounds(gen, 0.0, solution=wrong)
    assert not found.consistent[0] and found.upper[0] < found.computed[0]


@pytest.mark.parallel
def test_bounds_do_not_depend_on_the_number_of_ranks():
    values = []
    for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        domain = fp.Domain.rectangle((-2, -1), (0, 1), (6, 6), comm=comm)
        found = bounds(fp.Generator(fp.Langevin(double_well_2d, 0.2), domain, ["right"]), (-1.0, 0.0))
        values.append([b.value[0] for b in found.bounds if b.value is not None and "certificate" not in b.name])
    assert len(values[0]) == 3
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parallel
def test_bad_input():
    line, process = fp.Domain.interval(-1, 1, 6), fp.SDE(0.0, 0.5)
    refused(lambda: bounds(fp.Generator(process, line), 0.0), ValueError, "nothing absorbs", "left, right")
    gen = fp.Generator(process, line, ["left"])
    refused(lambda: bounds(gen, 1.5), ValueError, r"start: \(1.5,\) lies outside the mesh")
    refused(lambda: bounds(gen, [(0.0, 0.0)]), ValueError, "start: shape", "1 dimension")
    refused(lambda: bounds(gen, float("nan")), ValueError, "start", "not finite")
