"""The error bar knows how far disks, balls and annuli are from circles and spheres."""

import numpy as np
import pytest

import fpsolver as fp

pytest.importorskip("gmsh")
COS, SIN = np.cos(np.pi / 6), np.sin(np.pi / 6)
SLANTED = (np.array([[COS, -SIN], [SIN, COS]]) @ np.diag([1, 0.01]) @ np.array([[COS, SIN], [-SIN, COS]])).tolist()
FULL = [[1.0, 0.4, 0.1], [0.4, 0.5, 0.0], [0.1, 0.0, 0.3]]


@pytest.mark.parametrize(("h", "degree"), [(0.5, 4), (0.3, 4), (0.4, 3), (0.5, 5)])
def test_anisotropic_exits_from_a_disk(h, degree):
    """(1 − |x|²)/(2 tr D), whatever the constant D."""
    gen = fp.Generator(fp.SDE((0.0, 0.0), SLANTED), fp.Domain.disk((0, 0), 1.0, h), ["boundary"], degree=degree)
    tau = fp.mean_exit_time(gen, start=(0.7, 0.4))
    error = abs(tau.at((0.7, 0.4))[0] - 0.35 / 2.02)
    assert 0.5 * error < tau.error[0] < 5 * error + 1e-9


@pytest.mark.parametrize("degree", [3, 4])
def test_products_at_the_exit_from_a_ball(degree):
    """E x y at the exit is x y + 2 D_xy T, of which T = (1 − |x|²)/(2 tr D)."""
    q, exact = (0.2, -0.3, 0.5), -0.06 + 0.8 * (0.62 / 3.6)
    gen = fp.Generator(fp.SDE((0.0,) * 3, FULL), fp.Domain.ball((0, 0, 0), 1.0, 0.5), ["boundary"], degree=degree)
    u = fp.feynman_kac(gen, exit=lambda x: x[0] * x[1], start=q)
    error = abs(u.at(q)[0] - exact)
    assert 0.5 * error < u.error[0] < 20 * error


def test_exits_from_an_annulus():
    """(r² − 1)/4 less its harmonic part, for D = 1 between radii ½ and 1."""
    gen = fp.Generator(fp.SDE((0.0, 0.0), 1.0), fp.Domain.annulus((0, 0), 0.5, 1.0, 0.4), ["inner", "outer"])
    tau = fp.mean_exit_time(gen, start=(0.0, 0.7))
    exact = (1 - 0.49) / 4 - (1 - 0.25) / 4 * np.log(0.7) / np.log(0.5)
    assert abs(tau.at((0.0, 0.7))[0] - exact) < 2 * tau.error[0]


def test_a_tolerance_below_the_shape_of_the_first_mesh_is_met():
    gen = fp.Generator(fp.SDE((0.0, 0.0), SLANTED), fp.Domain.disk((0, 0), 1.0, 0.5), ["boundary"])
    tau = fp.mean_exit_time(gen, start=(0.7, 0.4), rtol=1e-6)
    error = abs(tau.at((0.7, 0.4))[0] - 0.35 / 2.02)
    assert error < 2 * tau.error[0] < 2e-6 * 0.35 / 2.02
    assert tau.generator.domain.closer() is None or len(tau.history) > 1


@pytest.mark.parallel
def test_refinement_follows_the_circle():
    domain = fp.Domain.disk((1, 0), 1.0, 0.5).closer()
    for _ in range(2):
        domain = domain.refine(np.arange(domain.mesh.topology.index_map(2).size_local))
    x = domain.boundary.corners.reshape(-1, 2) - (1, 0)
    assert np.hypot(*x.T) == pytest.approx(1, abs=1e-13)
    assert domain.mapped(lambda x: 2 * x).closer() is None and fp.Domain.interval(0, 1, 3).closer() is None
