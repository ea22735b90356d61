"""Where the process stays for ever, and that the reason is given."""

import numpy as np
import pytest
from tools import box, triangulated

import fpsolver as fp
from fpsolver.exits.reach import closed_classes
from fpsolver.landscapes import double_well


@pytest.mark.parallel
def test_one_way_gate():
    """Two samples whose noise (3x - 2)²/4 vanishes at 2/3, where the loss' slope leads down."""
    loss = lambda x: (x[0] ** 2 + (2 * x[0] - 1) ** 2) / 4  # noqa: E731
    sgd = fp.SGD(loss, fp.Covariance(lambda x: (((3 * x[0] - 2) ** 2 / 4,),)), learning_rate=0.1)
    gen = fp.Generator(sgd, fp.Domain.interval(-1 / 3, 5 / 3, 40), ["right"])  # 2/3 is a node
    with pytest.raises(ValueError, match=r"not certain.*stays for ever in \[-0.333333, 0.666667\] \(volume 1\)"):
        fp.mean_exit_time(gen)
    reach = closed_classes(gen)
    assert (reach.uncertain, reach.hopeless, reach.volume) == pytest.approx((2.0, 1.0, 2.0))
    with pytest.raises(ValueError, match="stays for ever"):
        fp.exit_probability(gen, "right")
    # leaving the other way is certain
    down = fp.Generator(sgd, fp.Domain.interval(2 / 3, 14 / 3, 80), ["left"])
    assert fp.mean_exit_time(down).at(5 / 3) == pytest.approx(0.615036296897802, rel=1e-6)


@pytest.mark.parallel
def test_gradient_flow_into_a_minimum():
    """No noise at all: b = -x (x - 1/2), stable at 1/2, from which only x < 0 gets away."""
    gen = fp.Generator(fp.SDE(lambda x: (-x[0] * (x[0] - 0.5),), 0.0), fp.Domain.interval(-1, 1, 45), ["left"])
    low, high = closed_classes(gen).closed[0].lower[0], closed_classes(gen).closed[0].upper[0]
    assert low < 0.5 < high and high - low < 0.05
    with pytest.raises(ValueError, match="stays for ever"):
        fp.mean_exit_time(gen)


@pytest.mark.parallel
def test_gradient_flow_in_the_plane():
    """b = (x - x³, 0.1 - y): paths with x < 0 are caught near (-1, 0.1), the others near (1, 0.1)."""
    domain = fp.Domain.rectangle((-1.7, -1), (1.6, 1.1), (23, 17))
    domain.mark("gap", lambda x: np.abs(x[1] + 1) < 1e-9)
    gen = fp.Generator(fp.SDE(lambda x: (x[0] - x[0] ** 3, 0.1 - x[1]), ((0, 0), (0, 0))), domain)
    found = closed_classes(gen).closed
    assert len(found) == 2
    for c in found:
        assert c.volume < 0.2
        assert c.lower[1] <= 0.1 <= c.upper[1]
    assert sorted(c.lower[0] <= 1 <= c.upper[0] for c in found) == [False, True]


@pytest.mark.parallel
def test_invariant_intervals():
    """Noise that vanishes at ±1, where the slope of the loss does too: three intervals, none of which is ever left."""
    sgd = fp.SGD(double_well, fp.Covariance(lambda x: ((double_well(x),),)), learning_rate=1.0)
    gen = fp.Generator(sgd, fp.Domain.interval(-2, 2, 40), ["right"])
    assert [c.volume for c in closed_classes(gen).closed] == pytest.approx([2.0, 1.0])
    with pytest.raises(ValueError, match=r"\[-1, 1\] \(volume 2\); \[-2, -1\] \(volume 1\)"):
        fp.exit_probability(gen, "right")


@pytest.mark.parallel
def test_rotation_that_spirals_inwards_never_reaches_the_outer_circle():
    """D = z zᵀ/2, z = (-y, x), b = -x: the radius shrinks."""
    D = lambda x: ((x[1] ** 2 / 2, -x[0] * x[1] / 2), (-x[0] * x[1] / 2, x[0] ** 2 / 2))  # noqa: E731
    with pytest.raises(ValueError, match="'outer' cannot be reached"):
        fp.Generator(fp.SDE(lambda x: (-x[0], -x[1]), D), fp.Domain.annulus((0, 0), 1, 2, 0.4), ["outer"])


@pytest.mark.parallel
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_everything_communicates_where_noise_is_everywhere(dim):
    gen = fp.Generator(fp.SDE(lambda x: [-x[i] for i in range(dim)], 0.1), box(dim, 3), ["left"], degree=1)
    reach = closed_classes(gen)
    assert reach.closed == ()
    assert (reach.uncertain, reach.hopeless, reach.volume) == pytest.approx((0, 0, 2**dim))
    without_exit = closed_classes(fp.Generator(gen.process, gen.domain, degree=1))
    assert [c.volume for c in without_exit.closed] == pytest.approx([2**dim])
    assert without_exit.closed[0].upper == pytest.approx((1.0,) * dim)


@pytest.mark.parallel
def test_noise_in_one_velocity_reaches_every_exit():
    domain = fp.Domain.rectangle((0, -3), (1, 3), (4, 6))
    gen = fp.Generator(fp.SDE(lambda x: (x[1], 0.0), ((0, 0), (0, 1.0))), domain, ["left", "right"])
    assert closed_classes(gen).closed == ()
    assert fp.mean_exit_time(gen).at((0.5, 0.0)) == pytest.approx(1.155979148508, rel=2e-3)


def test_an_island_without_an_exit_is_named():
    """Full noise, but the domain has two pieces: what looks like rounding has a reason."""
    mesh = triangulated(0.0, 3.0, 6, lambda x: np.abs(x[:, 0] - 1.5) > 0.5)
    domain = fp.Domain(mesh, {"left": lambda x: x[0] < 1e-9})
    gen = fp.Generator(fp.SDE((0, 0), 1.0), domain, ["left"], degree=1)
    with pytest.raises(ValueError, match=r"is infinite.*\[2, 3\] x \[0, 3\] \(volume 3\)"):
        fp.mean_exit_time(gen)


@pytest.mark.parallel
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_sliding_along_a_wall(noise):
    """Drift (1, 10) presses on the upper wall and slides to the exit on the right: E τ = 1 − x."""
    process = fp.SDE(lambda x: (1.0 + 0 * x[0], 10.0 + 0 * x[0]), ((0, 0), (0, noise)))
    gen = fp.Generator(process, fp.Domain.rectangle((0, 0), (1, 1), (4, 4)), absorbing=["right"])
    assert closed_classes(gen).closed == ()
    assert fp.mean_exit_time(gen).at((0.3, 0.5)) == pytest.approx(0.7, rel=1e-10)


@pytest.mark.parallel
@pytest.mark.parametrize("side", [0.2, 5.0])
def test_sliding_in_space(side):
    """Along a wall, and along the edge between two: E τ = 1 − x."""
    process = fp.SDE(lambda x: (1 + 0 * x[0], side + 0 * x[0], 3 + 0 * x[0]), [[0.0] * 3] * 3)
    gen = fp.Generator(process, fp.Domain.box((0, 0, 0), (1, 1, 1), (2, 2, 2)), absorbing=["right"], degree=1)
    assert closed_classes(gen).closed == ()
    assert fp.mean_exit_time(gen).at((0.3, 0.5, 0.5)) == pytest.approx(0.7, rel=1e-10)


@pytest.mark.parallel
def test_sliding_into_a_trap():
    """On the upper wall b₁ = (x − 0.3)(x − 0.6) leads to 0.3, unless one is beyond 0.6, which is a node."""
    process = fp.SDE(lambda x: ((x[0] - 0.3) * (x[0] - 0.6), 10.0 + 0 * x[0]), ((0, 0), (0, 0)))
    gen = fp.Generator(process, fp.Domain.rectangle((0, 0), (1, 1), (5, 5)), absorbing=["right"])
    (trap,) = closed_classes(gen).closed
    assert trap.upper == pytest.approx((0.6, 1.0))
    assert trap.lower[0] <= 0.3 <= trap.upper[0]
    with pytest.raises(ValueError, match="stays for ever"):
        fp.mean_exit_time(gen)
