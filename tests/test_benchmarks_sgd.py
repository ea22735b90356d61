"""Stochastic gradient descent with state-dependent noise, against closed forms.

The discrete algorithm differs from its diffusion by O(η): for f = x²/2 and noise of variance s² its stationary
variance is η s²/(2 − η), that of the diffusion η s²/2.  Nothing here compares with the algorithm itself.
"""

from functools import cache

import numpy as np
import pytest
import reference
import ufl
from dolfinx import fem
from scipy import integrate, special
from tools import BOX, box, check, coefficient_error, expectation

import fpsolver as fp

# ---------------------------------------------------------------- noise that grows with the distance


@cache
def _pearson(absorbing):
    process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Covariance(lambda x: 1 + x[0] ** 2), learning_rate=0.2)
    if absorbing:
        return fp.Generator(process, fp.Domain.interval(-2, 2, 40), BOX[1])
    return fp.Generator(process, fp.Domain.interval(-12, 12, 120))


def test_power_law_exit_time():
    """Itô form: 2830.45 from 0 to |x| = 2; the divergence form would give another time."""
    exact = reference.exit_time_1d(0.0, -2, 2, lambda x: -x, lambda x: 0.1 * (1 + x * x))
    check(exact, 2830.45340112167, 1e-12)
    check(fp.mean_exit_time(_pearson(True)).at(0.0), [exact], 4e-9)
    process = fp.SDE(lambda x: -x[0], lambda x: 0.1 * (1 + x[0] ** 2), "divergence")
    with fp.Generator(process, fp.Domain.interval(-2, 2, 40), BOX[1]) as gen:
        other = reference.exit_time_1d(0.0, -2, 2, lambda x: -x + 0.2 * x, lambda x: 0.1 * (1 + x * x))
        check(fp.mean_exit_time(gen).at(0.0), [other], 4e-10)
        assert other < 0.3 * exact


def test_power_law_invariant_density():
    """ρ = C (1 + x²)^{−6}: algebraic tails, variance 1/9."""
    p, peak = reference.pearson_parameters(1.0, 0.2, 1.0, 1.0)
    found = fp.stationary(_pearson(False))
    x = np.array([0.0, 1.0, -2.0])
    check(found.at(x), peak * (1 + x**2) ** (-p), 4e-8)
    check(expectation(_pearson(False), lambda y: y[0] ** 2, found.raw), 1 / 9, 2e-9)


# ---------------------------------------------------------------- two samples: noise of rank one


@cache
def _two_samples():
    """f₁ = x²/2, f₂ = y²/2: mean (x² + y²)/4, Σ = (x, −y)(x, −y)ᵀ/4."""
    noise = fp.PerSample([lambda x: x[0] ** 2 / 2, lambda x: x[1] ** 2 / 2])
    process = fp.SGD(None, noise, learning_rate=0.4)
    return fp.Generator(process, fp.Domain.rectangle((-5, -5), (5, 5), (10, 10)))


def test_two_sample_means():
    """From (1, 1): E X = e^{-t/2}, E X² = e^{(η/4 − 1)t}, X Y = e^{−(1 + η/4)t} for every path."""
    gen, start = _two_samples(), (1.0, 1.0)
    assert gen.scheme == "dg"
    check(fp.backward(gen, lambda x: x[0], [1.0], time_rtol=1e-8)[0].at(start), [0.606530659712633], 6e-7)
    check(fp.backward(gen, lambda x: x[0] ** 2, [1.0], time_rtol=1e-8)[0].at(start), [0.406569659740599], 1e-5)
    check(fp.backward(gen, lambda x: x[0] * x[1], [1.0], time_rtol=1e-8)[0].at(start), [0.33287108369808], 1e-8)


def test_two_sample_product_is_an_eigenfunction():
    """L(xy) = −(1 + η/4) xy, to rounding, from per-sample losses."""
    noise = fp.PerSample([lambda x: x[0] ** 2 / 2, lambda x: x[1] ** 2 / 2])
    with fp.Generator(fp.SGD(None, noise, learning_rate=0.4), box(2, 3, 0.5, 1.5), BOX[2], degree=2) as gen:
        u = fp.feynman_kac(gen, exit=lambda x: x[0] * x[1], running=lambda x: 1.1 * x[0] * x[1])
        assert coefficient_error(gen, u.function, lambda x: x[0] * x[1]) < 1e-12


# ---------------------------------------------------------------- a one-way gate


def _gate(learning_rate):
    """f = (x² + (2x − 1)²)/4: at 2/3 the gradients agree, and the mean gradient still points down."""
    return fp.SGD(None, fp.PerSample([lambda x: x[0] ** 2 / 2, lambda x: (2 * x[0] - 1) ** 2 / 2]), learning_rate)


@pytest.mark.parametrize("right", [2 / 3, 1.5])
def test_invariant_density_below_the_gate(right):
    """Inverse gamma in 2/3 − x, nothing above, whether the mesh ends at the gate or not."""
    cells = 60 if right < 1 else 60 + 30
    gen = fp.Generator(_gate(0.1), fp.Domain.interval(-1, right, cells))
    p = fp.stationary(gen)
    y = np.array([0.244648318042813, 2 / 3 - 0.4, 0.4, 0.6])
    exact = np.array([reference.gate_density(s, 0.1) for s in y])
    check(exact[0], 7.66779632627711, 1e-10)
    check(p.at(2 / 3 - y), exact, 2e-5)
    shape, scale = reference.gate_parameters(0.1)
    check(expectation(gen, lambda x: 2 / 3 - x[0], p.raw), scale / (shape - 1), 1e-10)
    if right > 1:
        assert np.abs(p.at([0.9, 1.2])).max() < 1e-6


def test_time_down_to_the_gate():
    """From 5/3 to 2/3, where noise ends and the drift leaves; 0.6233 without noise."""
    gen = fp.Generator(_gate(0.1), fp.Domain.interval(2 / 3, 6, 80), ["left"])
    assert gen.boundary_report()["left"].outflow == 1.0
    check(fp.mean_exit_time(gen).at(5 / 3), [0.615036296897802], 2e-11)


def test_gate_with_a_little_isotropic_noise():
    """D = 0.1125 y² + δ: the mean stays 4/15, E y² = (2m²/k + 2δ)/(2k − s²) over k is affine in δ."""
    delta, eta, m, k = 0.01, 0.1, 2 / 3, 2.5
    noise = fp.PerSample([lambda x: x[0] ** 2 / 2, lambda x: (2 * x[0] - 1) ** 2 / 2]) + fp.Isotropic(2 * delta / eta)
    loss = lambda x: (x[0] ** 2 + (2 * x[0] - 1) ** 2) / 4  # noqa: E731
    gen = fp.Generator(fp.SGD(loss, noise, eta), fp.Domain.interval(-2, 1.4, 100))
    p = fp.stationary(gen).raw
    check(expectation(gen, lambda x: 2 / 3 - x[0], p), 4 / 15, 5e-12)
    second = (2 * m * m / k + 2 * delta) / (2 * k - 0.225)
    check(expectation(gen, lambda x: (2 / 3 - x[0]) ** 2, p), second, 5e-12)


# ---------------------------------------------------------------- noise that follows the loss


def test_mass_splitting_between_interpolating_minima():
    """f = (x² − 1)²/4, Σ = f: both minima trap; P(end at +1 | x) = I_{(1+x)/2}(4/η + 1, 4/η + 1)."""
    eta = 4.0
    process = fp.SGD(lambda x: (x[0] ** 2 - 1) ** 2 / 4, fp.Covariance(lambda x: (x[0] ** 2 - 1) ** 2 / 4), eta)
    # both ends are characteristic points that are never reached: stop just before them and give exact data there
    a = 0.995
    gen = fp.Generator(process, fp.Domain.interval(-a, a, 60), BOX[1])

    def split(x):
        return special.betainc(4 / eta + 1, 4 / eta + 1, (1 + x) / 2)

    u = fp.feynman_kac(gen, exit={"left": float(split(-a)), "right": float(split(a))})
    x = np.array([-0.5, -0.2, 0.7])
    check(split(-0.5), 0.15625, 1e-12)
    check(u.at(x), split(x), 3e-12)


def _power_law(x):
    return 0.1 + (x[0] ** 2 - 1) ** 2 / 4


POWER_LAW = {
    2.0: 97.704346283298,
    5.0: 4268.6804802297,
    10.0: 2260335.6679631,
    20.0: 627660586405.27,
    40.0: 4.7940549347313e22,
}


@pytest.mark.parametrize(("gamma", "rtol"), [(2.0, 1e-9), (5.0, 1e-8), (10.0, 2e-6)])
def test_escape_with_noise_proportional_to_the_loss(gamma, rtol):
    """D = L/γ with L = 1/10 + (x² − 1)²/4: power-law escape (Mori, Ziyin, Liu, Ueda 2022), −1 to 1."""
    process = fp.SDE(lambda x: x[0] - x[0] ** 3, lambda x: _power_law(x) / gamma)
    gen = fp.Generator(process, fp.Domain.interval(0, 1, 150).mapped(lambda x: (1 - 11 * (1 - x[0]) ** 2,)), ["right"])
    check(fp.mean_exit_time(gen).at(-1.0), [POWER_LAW[gamma]], rtol)


@pytest.mark.parallel
@pytest.mark.parametrize("gamma", [5.0, 10.0, 20.0, 40.0])
def test_escape_with_noise_proportional_to_the_loss_at_high_barriers(gamma):
    """The invariant density L^{−1−γ} is known, so that the weighted scheme reaches 5e22."""
    process = fp.SDE(
        lambda x: x[0] - x[0] ** 3, lambda x: _power_law(x) / gamma, gibbs=lambda x: (1 + gamma) * ufl.ln(_power_law(x))
    )
    gen = fp.Generator(process, fp.Domain.interval(-7, 1, 240), ["right"], scheme="weighted")
    check(fp.mean_exit_time(gen).at(-1.0), [POWER_LAW[gamma]], 1e-8)


# twice the time from −1 to 0, by quadrature of the scale function and the speed measure
HESSIAN_NOISE = {
    "ito": {0.05: 156.982241439, 0.02: 39093.9528157, 0.01: 447426618.164},
    "divergence": {0.05: 289.115180836, 0.02: 77637.505918, 0.01: 894672752.117},
}
JUMP = -np.sqrt(1 - np.sqrt(0.5))
"""Where the loss is half the barrier."""


def _jumping_domain():
    return fp.Domain.interval(0, 2, 90).mapped(lambda x: (np.interp(x[0], [0, 4 / 3, 2], [-2.4, JUMP, 0]),))


def _jumping_potential(x, c):
    """−∫ b/D for b = x − x³ and D = 2c below the jump, c above."""
    f = (x[0] ** 2 - 1) ** 2 / 4
    return ufl.conditional(ufl.lt(x[0], JUMP), f / (2 * c), 1 / (16 * c) + (f - 1 / 8) / c)


@pytest.mark.parallel
@pytest.mark.parametrize("convention", HESSIAN_NOISE)
@pytest.mark.parametrize("c", [0.05, 0.02, 0.01])
def test_noise_that_follows_the_hessian_in_two_conventions(c, convention):
    """(x² − 1)²/4 with D = c f''(−1) = 2c up to half the barrier and c |f''(0)| = c above (Xie, Sato, Sugiyama 2021).

    The conventions differ by a factor of two: in Itô's, e^{−U} jumps with D, in the divergence form it does not.
    """

    def D(x):
        return ufl.conditional(ufl.lt(x[0], JUMP), 2 * c, c)

    def U(x):
        return _jumping_potential(x, c) + (ufl.ln(D(x)) if convention == "ito" else 0)

    process = fp.SDE(lambda x: x[0] - x[0] ** 3, D, convention, gibbs=U)
    gen = fp.Generator(process, _jumping_domain(), ["right"], scheme="weighted")
    check(2 * fp.mean_exit_time(gen).at(-1.0), [HESSIAN_NOISE[convention][c]], 2e-11)


@pytest.mark.parallel
def test_divergence_form_of_a_jump_without_its_potential():
    c, domain = 0.02, _jumping_domain()
    D = fem.Function(fem.functionspace(domain.mesh, ("DG", 0)))
    D.interpolate(lambda x: np.where(x[0] < JUMP, 2 * c, c))
    gen = fp.Generator(fp.SDE(lambda x: x[0] - x[0] ** 3, D, "divergence"), domain, ["right"], scheme="dg")
    check(2 * fp.mean_exit_time(gen).at(-1.0), [HESSIAN_NOISE["divergence"][c]], 1e-8)


def test_integrals_of_the_gate_density():
    """The reference itself: mass one, variance 0.00335."""
    shape, scale = reference.gate_parameters(0.1)
    mass = integrate.quad(lambda y: reference.gate_density(y, 0.1), 0, 2, epsabs=0, epsrel=1e-10)[0]
    check(mass, 1.0, 1e-12)
    check(scale**2 / (shape - 1) ** 2 / (shape - 2), 0.00335078534031414, 1e-12)
