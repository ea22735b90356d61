"""Diffusion that jumps or bends inside the mesh, as that of ReLU losses does: Itô's answer, and honest error bars.

In one dimension L u = b u' + D u'' with u continuously differentiable, whatever D does; the references integrate
u' and the speed measure e^{∫b/D}/D.  Two dimensions are one, turned: a square with reflecting sides.
"""

from functools import cache

import numpy as np
import pytest
import ufl
from dolfinx import fem
from tools import check

import fpsolver as fp

SLOPES = np.array([-1.0, 0.0, 4.0])  # of ReLU samples a (w - c)⁺ + w²/2
ENDS = ["left", "right"]
ANGLE = 0.4
NORMAL, ALONG = (float(np.cos(ANGLE)), float(np.sin(ANGLE))), (-float(np.sin(ANGLE)), float(np.cos(ANGLE)))


def exit_time(b, D, start, jump, n=200_000):
    """E τ of dX = b dt + √(2D) dW on (-1, 1), both ends absorbing, with D and b smooth but for ``jump``."""
    ends = np.concatenate([np.linspace(-1, jump, n + 1), np.linspace(jump, 1, n + 1)[1:]])
    h, x = np.diff(ends), 0.5 * (ends[1:] + ends[:-1])
    Phi = np.cumsum(b(x) / D(x) * h)
    Phi -= 0.5 * b(x) / D(x) * h
    speed, scale = np.exp(Phi) / D(x) * h, np.exp(-Phi) * h
    S, SM = np.cumsum(scale), np.cumsum(scale * (np.cumsum(speed) - 0.5 * speed))
    s, sm = (np.interp(start, ends[1:], a) for a in (S, SM))
    return s / S[-1] * SM[-1] - sm


def honest(answer, exact, at_most=np.inf):
    """The error is at most twice the bar, and the bar is not idle; the bar."""
    error, bar = abs(answer.at(answer.estimate.start) - exact), answer.error
    assert (error <= 2 * bar + 1e-9).all(), f"error {error}, bar {bar}"
    assert (bar <= at_most * np.abs(exact)).all(), f"bar {bar} of {exact}"
    return bar


def relu(c):
    """Three ReLU samples with their kink at c: b and D of SGD with η = 0.4 beside Isotropic(0.5), and the exit time."""
    above = lambda x: np.asarray(x) > c  # noqa: E731
    return (
        lambda x: -x - above(x) * SLOPES.mean(),
        lambda x: 0.2 * (0.5 + SLOPES.var() * above(x)),
    )


def sgd(noise, loss=None):
    return fp.SGD(loss, noise + fp.Isotropic(0.5), learning_rate=0.4)


def by_ufl(c):
    return sgd(fp.PerSample([lambda w, a=a: a * ufl.max_value(w[0] - c, 0.0) + w[0] ** 2 / 2 for a in SLOPES]))


def by_torch(c):
    torch = pytest.importorskip("torch")
    return sgd(fp.PerSample.from_torch(lambda w, a: a * torch.relu(w[0] - c) + w[0] ** 2 / 2, (SLOPES,)))


def by_jax(c):
    jax = pytest.importorskip("jax")
    return sgd(fp.PerSample.from_jax(lambda w, a: a * jax.nn.relu(w[0] - c) + w[0] ** 2 / 2, (SLOPES,)))


def by_arrays(c):
    grads = fp.batched(lambda x: (SLOPES * (x > c) + x)[:, :, None])
    return sgd(fp.PerSample(grads), lambda w: SLOPES.mean() * ufl.max_value(w[0] - c, 0.0) + w[0] ** 2 / 2)


def by_covariance(c):
    D = fp.batched(lambda x: (0.2 * (0.5 + SLOPES.var() * (x > c)))[:, :, None])
    return fp.SDE(lambda x: -x[0] - ufl.conditional(ufl.gt(x[0], c), float(SLOPES.mean()), 0.0), D)


@pytest.mark.parametrize("make", [by_ufl, by_torch, by_jax, by_arrays, by_covariance])
def test_relu_samples(make):
    """The kink in a vertex: 7.7126, where the divergence form gives 1.3803; and inside cells."""
    assert exit_time(*relu(0.1), 0.3, 0.1) == pytest.approx(7.7126, abs=1e-4)
    for c, n, bar in ((0.1, 20, 2e-3), (0.137, 47, 0.03), (-0.3217, 33, 0.06)):
        with fp.Generator(make(c), fp.Domain.interval(-1, 1, n), absorbing=ENDS) as gen:
            honest(fp.mean_exit_time(gen, start=(0.3,)), exit_time(*relu(c), 0.3, c), bar)


@pytest.mark.parametrize("scheme", ["galerkin", "dg"])
def test_positions(scheme):
    """Jumps of D by 10 up and down at several places of the mesh, with a drift; one compilation for all."""
    start = np.array([0.4, -0.2])
    for left in (-1.0, -1.013, -1.031, -1.05, -1.077):
        domain, shift = fp.Domain.interval(left, left + 2, 21), left + 1  # the jump is at 0.031, wherever the mesh is
        process = fp.SDE(lambda x: -x[0], lambda x: ufl.conditional(ufl.gt(x[0], 0.031), 1.0, 0.1))
        b, D = lambda x: -x - shift, lambda x: np.where(x > c, 1.0, 0.1)  # noqa: B023
        c = 0.031 - shift
        with fp.Generator(process, domain, absorbing=ENDS, scheme=scheme) as gen:
            honest(fp.mean_exit_time(gen, start=(start + shift)[:, None]), exit_time(b, D, start, c), 0.3)


@cache
def aligned():
    """D from 0.1 to 1 at 0 as cell data, in the convention; no drift."""
    domain = fp.Domain.interval(-1, 1, 10)
    D = fem.Function(fem.functionspace(domain.mesh, ("DG", 0)))
    D.interpolate(lambda x: np.where(x[0] > 0, 1.0, 0.1))
    return domain, D


@pytest.mark.parametrize("scheme", ["galerkin", "dg"])
def test_jumps_on_facets(scheme):
    """u'' = −1/D and u' continuous: 1.77 at 0.4, to rounding; as cell data and as a condition."""
    domain, D = aligned()
    for diffusion in (D, lambda x: ufl.conditional(ufl.gt(x[0], 0.0), 1.0, 0.1)):
        with fp.Generator(fp.SDE(0.0, diffusion), domain, absorbing=ENDS, scheme=scheme) as gen:
            tau = fp.mean_exit_time(gen, start=(0.4,))
            check(tau.at((0.4,)), 1.77, 1e-10)
            assert tau.error < 1e-8
            assert gen.rough.number == 0
            assert gen.rough.cells.sum() == 2


def test_divergence_form_is_left_alone():
    """With D∇u continuous instead of ∇u: u' = −(x − a)/D with a = −9/22."""
    domain, D = aligned()
    with fp.Generator(fp.SDE(0.0, D, convention="divergence"), domain, absorbing=ENDS) as gen:
        a = -9 / 22
        exact = 0.5 * (1 - a) ** 2 - 0.5 * (0.4 - a) ** 2
        check(fp.mean_exit_time(gen).at((0.4,)), exact, 1e-10)
        assert gen.weak.rough is None


def test_stratonovich_needs_a_continuous_diffusion():
    domain, D = aligned()
    with pytest.raises(ValueError, match=r"stratonovich.*'ito'"):
        fp.Generator(fp.SDE(0.0, D, "stratonovich"), domain, ENDS)


def test_one_way_gate_inside_a_cell():
    """D = |x|, b = 1/4: what has passed 0 never returns; E τ = 4(1 − x) − 8|x|^{5/4} below it."""
    exact = 4 * 1.2 - 8 * 0.2**1.25
    process = fp.SDE(lambda x: 0.25 + 0 * x[0], lambda x: abs(x[0]))
    for n, bar in ((15, 0.35), (61, 0.2), (241, 0.1), (16, 0.02)):
        with fp.Generator(process, fp.Domain.interval(-1, 1, n), absorbing=ENDS) as gen:
            honest(fp.mean_exit_time(gen, start=(-0.2,)), exact, bar)


@pytest.mark.parametrize("width", [0.3, 0.02, 0.002])
def test_steep_is_not_rough(width):
    """What has a formula without conditions cannot jump; elsewhere smooth means resolved."""
    domain = fp.Domain.interval(-1, 1, 20)
    with fp.Generator(fp.SDE(0.0, lambda x: 1.1 + ufl.tanh(x[0] / width)), domain, ENDS) as gen:
        assert gen.rough.number == 0
        assert gen.weak.rough is None
    if width > 0.1:
        for D in (lambda x: 1.1 + ufl.tanh(abs(x[0] - 7) / width - 7 / width), lambda x: 0.1 + abs(x[0]) ** 3):
            with fp.Generator(fp.SDE(0.0, D), domain, ENDS) as gen:
                assert gen.rough.number == 0


def turned(c, low, high, drift=0.0):
    """One dimension across the line n·x = c in a turned square, a jump of the noise along the line too."""
    across = lambda x: NORMAL[0] * x[0] + NORMAL[1] * x[1]  # noqa: E731

    def D(x):
        is_above = ufl.gt(across(x), c)
        n, t = ufl.as_vector(NORMAL), ufl.as_vector(ALONG)
        return ufl.conditional(is_above, high, low) * ufl.outer(n, n) + ufl.conditional(
            is_above, 0.3, 0.05
        ) * ufl.outer(t, t)

    return fp.SDE(lambda x: -drift * across(x) * ufl.as_vector(NORMAL), D)


def turned_square(h):
    corners = [tuple(a * np.array(NORMAL) + b * np.array(ALONG)) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    return fp.Domain.polygon(corners, h, {"high": [1], "low": [3]})


@pytest.mark.parametrize("scheme", ["galerkin", "dg"])
def test_oblique_line(scheme):
    """A jump across cells of any shape; mass, constants and duality hold to rounding."""
    c, low, high, drift = 0.137, 0.2, 2.0, 1.0
    start = tuple(0.3 * np.array(NORMAL) + 0.1 * np.array(ALONG))
    exact = exit_time(lambda x: -drift * x, lambda x: np.where(x > c, high, low), 0.3, c)
    for h in (0.3, 0.17):
        with fp.Generator(
            turned(c, low, high, drift), turned_square(h), ["low", "high"], degree=2, scheme=scheme
        ) as gen:
            honest(fp.mean_exit_time(gen, start=start), exact, 0.25)
    with fp.Generator(turned(c, low, high, drift), turned_square(0.3), degree=2, scheme=scheme) as gen:
        ones, flux = gen.G.createVecLeft(), gen.G.createVecRight()
        ones.set(1.0)
        gen.G.multTranspose(ones, flux)
        assert flux.norm() <= 1e-11 * gen.G.norm()
        p = fp.stationary(gen)
        # (Dρ)' = bρ across the line: ρ = e^{∫b/D}/D
        x = np.array([-0.5, 0.7])
        D = np.where(x > c, high, low)
        potential = np.where(x > c, -(x**2 - c**2) / (2 * high) - c**2 / (2 * low), -(x**2) / (2 * low))
        density = np.exp(potential) / D
        found = p.at(x[:, None] * np.array(NORMAL))
        check(found[0] / found[1], density[0] / density[1], 0.05)


def test_other_numbers():
    """``replace`` gives what a new generator gives, also where the jump comes with the number."""
    domain = fp.Domain.interval(-1, 1, 12)
    with fp.Generator(by_ufl(0.05), domain, absorbing=ENDS) as gen:
        for eta in (0.2, 0.8):
            other = fp.SGD(None, by_ufl(0.05).noise, learning_rate=eta)
            with gen.replace(learning_rate=eta) as a, fp.Generator(other, domain, absorbing=ENDS) as b:
                check(fp.mean_exit_time(a).at((0.3,)), fp.mean_exit_time(b).at((0.3,)), 1e-12)


def test_regions():
    """Committors live on part of the mesh: h' = c e^{−∫b/D}, with no drift a straight line whatever D does."""
    domain = fp.Domain.interval(-1, 1, 20)
    process = fp.SDE(0.0, lambda x: ufl.conditional(ufl.gt(x[0], 0.03), 1.0, 0.1))
    for scheme in ("galerkin", "dg"):
        with fp.Generator(process, domain, scheme=scheme) as gen:
            q = fp.committor(gen, lambda x: x[0] < -0.5, lambda x: x[0] > 0.5)
            check(q.at(((-0.25,), (0.0,), (0.25,))), [0.25, 0.5, 0.75], 1e-10)


def test_drift_that_jumps():
    """|x| as loss: D is constant, but β jumps inside a cell: E τ(0) = T(e^{1/T} − 1) − 1."""
    T = 0.5
    process = fp.Langevin(lambda x: abs(x[0]), T)
    for n in (9, 21):
        with fp.Generator(process, fp.Domain.interval(-1, 1, n), absorbing=ENDS) as gen:
            honest(fp.mean_exit_time(gen, start=(0.0,)), T * (np.exp(1 / T) - 1) - 1, 0.1)
            assert gen.rough.number == 1


@pytest.mark.parallel
def test_ranks():
    """The same on any number of ranks."""
    with fp.Generator(turned(0.137, 0.2, 2.0), turned_square(0.4), ["low", "high"], degree=2, scheme="dg") as gen:
        tau = fp.mean_exit_time(gen)
        check(tau.at((0.1, 0.2)), exit_time(lambda x: 0 * x, lambda x: np.where(x > 0.137, 2.0, 0.2), 0.17, 0.137), 0.1)
    with fp.Generator(by_ufl(0.1), fp.Domain.interval(-1, 1, 20), absorbing=ENDS) as gen:
        check(fp.mean_exit_time(gen).at((0.3,)), 7.712622511274999, 1e-3)
