"""Critical points: against published tables and roots of polynomials."""

import numpy as np
import pytest
import ufl
from dolfinx import fem
from test_errors import refused

import fpsolver as fp
from fpsolver.landscapes import double_well, muller_brown, three_hole, tilted_well


def points(found, kind):
    return np.array([c.point for c in found if c.kind == kind])


@pytest.mark.parallel
def test_double_well():
    found = fp.diagnostics.critical_points(fp.Langevin(double_well, 0.1), fp.Domain.interval(-3, 3, 12))
    assert [c.kind for c in found] == ["minimum", "minimum", "maximum"]
    assert np.allclose([c.point[0] for c in found], [-1, 1, 0], rtol=0, atol=1e-15)
    assert np.allclose([c.value for c in found], [0, 0, 0.25], rtol=0, atol=1e-15)
    assert [c.eigenvalues[0] for c in found] == pytest.approx([2, 2, -1], rel=1e-14)
    assert [c.index for c in found] == [0, 0, 1]


def test_tilted_well_to_machine_precision():
    """Roots of x³ - x + 1/10, on a coarse mesh."""
    roots = np.sort(np.roots([1, 0, -1, 0.1]).real)
    found = fp.diagnostics.critical_points(tilted_well, fp.Domain.interval(-2.1, 2, 7))
    assert np.allclose([c.point[0] for c in found], roots[[0, 2, 1]], rtol=0, atol=1e-14)
    assert np.allclose(
        [c.point[0] for c in found], [-1.0466805318046, 0.945649273923591, 0.101031257881011], atol=1e-12
    )
    barriers = [found[2].value - c.value for c in found[:2]]
    assert barriers == pytest.approx([0.357411589373857, 0.157664957347606], rel=1e-12)
    assert max(c.gradient_norm for c in found) < 1e-14


@pytest.mark.parallel
@pytest.mark.parametrize("corners", [((-1.5, -0.2), (1.2, 2)), ((-3.6, -2.6), (3, 3.8))])
def test_mueller_brown(corners):
    """Also on a box at whose corners the potential is 1e13."""
    found = fp.diagnostics.critical_points(muller_brown, fp.Domain.rectangle(*corners, (12, 12)))
    minima = [(-0.558223634633, 1.441725841805), (0.623499404931, 0.028037758529), (-0.050010822998, 0.466694104872)]
    saddles = [(0.212486582001, 0.292988325107), (-0.822001558733, 0.624312802815)]
    assert len(found) == 5
    assert np.allclose(points(found, "minimum"), minima, rtol=0, atol=1e-12)
    assert np.allclose(points(found, "saddle"), saddles, rtol=0, atol=1e-12)
    values = [-146.6995172100, -108.1667241169, -80.7678181297, -72.2489401123, -40.6648435087]
    assert np.allclose([c.value for c in found], values, rtol=0, atol=1e-10)


@pytest.mark.parallel
def test_three_hole_potential_and_its_maximum():
    found = fp.diagnostics.critical_points(three_hole, fp.Domain.rectangle((-2, -1.5), (2, 2.5), (8, 8)))
    holes = [(-1.048054992824, -0.0420936663067), (1.048054992824, -0.0420936663067), (0, 1.537082004449)]
    assert np.allclose(sorted(points(found, "minimum").tolist()), sorted(holes), rtol=0, atol=1e-12)
    passes = [(-0.6172723078765, 1.102734517508), (0.6172723078765, 1.102734517508), (0, -0.3158265504781)]
    assert np.allclose(sorted(points(found, "saddle").tolist()), sorted(passes), rtol=0, atol=1e-12)
    assert np.allclose(points(found, "maximum"), [(0, 0.5191867418921)], rtol=0, atol=1e-12)
    values = [-3.994860601854, -3.994860601854, -2.172153622994, -1.646687453475, -1.646687453475, -1.384586640398]
    assert np.allclose([c.value for c in found], [*values, -0.7152298869818], rtol=0, atol=1e-12)


@pytest.mark.parallel
def test_separable_wells_in_three_dimensions():
    """Products of the critical points of one-dimensional wells: four minima, four saddles, one of index two."""
    f = lambda x: (x[0] ** 2 - 1) ** 2 / 4 + (x[1] ** 2 - 1) ** 2 / 2 + x[2] ** 2  # noqa: E731
    found = fp.diagnostics.critical_points(f, fp.Domain.box((-1.5, -1.4, -1.1), (1.6, 1.4, 1), (3, 3, 3)))
    assert [c.index for c in found] == [0] * 4 + [1] * 4 + [2]
    assert np.allclose([c.value for c in found], [0] * 4 + [0.25] * 2 + [0.5] * 2 + [0.75], atol=1e-14)
    for c in found:
        x, y, z = c.point
        assert max(abs(x**3 - x), abs(y**3 - y), abs(z)) < 1e-14
        assert np.allclose(c.eigenvalues, np.sort([3 * x**2 - 1, 6 * y**2 - 2, 2]), atol=1e-12)


def test_points_outside_the_mesh_are_dropped_and_those_on_its_boundary_kept():
    found = fp.diagnostics.critical_points(double_well, fp.Domain.interval(-3, 0, 10))
    assert np.allclose([c.point[0] for c in found], [-1, 0], atol=1e-15)
    ring = fp.Domain.annulus((0, 0), 0.5, 2, 0.4)
    assert fp.diagnostics.critical_points(lambda x: x[0] ** 2 + x[1] ** 2, ring) == []


@pytest.mark.parallel
def test_per_sample_losses_and_their_covariance_at_the_minimum():
    """f = (x² + (2x - 1)²)/4 has its minimum at 2/5; the two gradients differ by 3x - 2, so Σ = (3x - 2)²/4."""
    noise = fp.PerSample([lambda x: x[0] ** 2 / 2, lambda x: (2 * x[0] - 1) ** 2 / 2])
    (c,) = fp.diagnostics.critical_points(fp.SGD(None, noise, 0.1), fp.Domain.interval(-1, 2, 6))
    assert c.point[0] == pytest.approx(0.4, abs=1e-15)
    assert c.hessian == pytest.approx(np.array([[2.5]]), rel=1e-14)
    assert c.covariance == pytest.approx(np.array([[0.16]]), rel=1e-13)
    batched = fp.PerSample(fp.batched(lambda x: np.stack([x, 4 * x - 2], axis=1)))
    (c,) = fp.diagnostics.critical_points(
        fp.SGD(lambda x: (x[0] ** 2 + (2 * x[0] - 1) ** 2) / 4, batched, 0.1), fp.Domain.interval(-1, 2, 6)
    )
    assert c.covariance == pytest.approx(np.array([[0.16]]), rel=1e-13)


@pytest.mark.parallel
def test_batched_losses_say_that_their_derivatives_are_differences():
    f = fp.batched(lambda x: three_hole(x.T))
    found = fp.diagnostics.critical_points(f, fp.Domain.rectangle((-2, -1.5), (2, 2.5), (8, 8)))
    exact = fp.diagnostics.critical_points(three_hole, fp.Domain.rectangle((-2, -1.5), (2, 2.5), (8, 8)))
    assert len(found) == len(exact) == 7
    assert not any(c.exact for c in found) and all(c.exact for c in exact)
    for kind in ("minimum", "saddle", "maximum"):
        a, b = (np.array(sorted(np.round(points(x, kind), 5).tolist())) for x in (found, exact))
        assert np.allclose(a, b, atol=2e-5)
    assert found[2].point == pytest.approx(exact[2].point, abs=1e-8)
    assert np.allclose(found[-1].eigenvalues, exact[-1].eigenvalues, atol=1e-5)


def test_degenerate_points():
    for power, index in ((4, 0), (3, None)):
        (c,) = fp.diagnostics.critical_points(lambda x, p=power: x[0] ** p, fp.Domain.interval(-1, 1.1, 7))
        assert c.kind == "degenerate"
        assert abs(c.point[0]) < 1e-9
        assert index is None or c.index == index


@pytest.mark.parallel
def test_a_valley_of_minima_is_refused():
    square = fp.Domain.rectangle((-2, -1.5), (2, 2.5), (8, 8))
    valley = lambda x: (x[0] * x[1] - 1) ** 2  # noqa: E731
    refused(lambda: fp.diagnostics.critical_points(valley, square), ValueError, "not isolated", "singular")


@pytest.mark.parallel
def test_bad_input():
    line = fp.Domain.interval(-1, 1, 6)
    find = fp.diagnostics.critical_points
    refused(lambda: find(fp.SDE(0.0, 1.0), line), TypeError, "SDE has no loss", "Langevin")
    momentum = fp.MomentumSGD(lambda x: x[0] ** 2, fp.Isotropic(1.0), 0.1, 0.5)
    refused(lambda: find(momentum, line), TypeError, "MomentumSGD lives on")
    refused(lambda: find(lambda x: np.exp(x[0]), line), TypeError, "loss failed on UFL", "ufl.exp")
    refused(lambda: find(lambda x: ufl.as_vector([x[0], x[0]]), line), ValueError, "loss has shape", "scalar")
    refused(lambda: find(fp.batched(lambda x: x), line), ValueError, "loss returned shape")
    refused(
        lambda: find(fem.Function(fem.functionspace(line.mesh, ("Lagrange", 1))), line), ValueError, "dolfinx Function"
    )
