"""Łojasiewicz exponents against theory, and the decay of the expected loss against the exact law of a process."""

import numpy as np
import pytest
import ufl
from dolfinx import fem
from scipy.integrate import quad
from scipy.stats import ncx2
from test_errors import refused

import fpsolver as fp
from fpsolver.diagnostics import lojasiewicz, loss_decay


def line():
    return fp.Domain.interval(-1, 1, 8)


def square(half=1.0):
    return fp.Domain.rectangle((-half, -half), (half, half), (4, 4))


def covers(exponent, theta, width=0.02):
    low, high = exponent.interval
    return low <= theta <= high and high - low < width


@pytest.mark.parallel
@pytest.mark.parametrize("q", [2, 4, 6])
def test_powers(q):
    """|x|^q: θ = 1 − 1/q, and |f'| = q f^θ."""
    found = lojasiewicz(lambda x: x[0] ** q, 0.0, line())
    assert found.theta == pytest.approx(1 - 1 / q, abs=1e-6)
    assert covers(found, 1 - 1 / q, 0.002)
    assert found.constant == pytest.approx(q, rel=1e-3)
    assert found.levels[1] > 100 * found.levels[0]
    assert found.exponential == (q == 2)


@pytest.mark.parametrize(
    ("loss", "point", "theta"),
    [
        (lambda x: (x[1] - x[0] ** 2) ** 2, (0, 0), 1 / 2),  # a valley, regular across
        (lambda x: (x[0] * x[1] - 1) ** 2 / 2, (1, 1), 1 / 2),  # the same: a two-layer linear neuron
        (lambda x: x[0] ** 2 * x[1] ** 2, (0, 0), 3 / 4),  # two valleys cross
        (lambda x: x[0] ** 2 * x[1] ** 4, (0, 0), 5 / 6),  # homogeneous of degree 6
        (lambda x: x[0] ** 2 + x[1] ** 4, (0, 0), 3 / 4),  # worst in one direction only
        (lambda x: (x[1] - x[0] ** 2) ** 2 + x[0] ** 6, (0, 0), 5 / 6),  # worst along a curve
    ],
)
def test_valleys_and_the_worst_direction(loss, point, theta):
    found = lojasiewicz(loss, point, square(2.0), radius=1.0)
    assert covers(found, theta), str(found)


@pytest.mark.parallel
def test_the_worst_direction_in_three_dimensions():
    box = fp.Domain.box((-1, -1, -1), (1, 1, 1), (2, 2, 2))
    assert covers(lojasiewicz(lambda x: x[0] ** 2 + x[1] ** 2 + x[2] ** 6, (0, 0, 0), box), 5 / 6)


def test_wells_and_large_offsets():
    """A constant in f costs digits, not the exponent."""
    assert covers(lojasiewicz(fp.landscapes.double_well, 1.0, fp.Domain.interval(-3, 3, 8)), 1 / 2)
    assert covers(lojasiewicz(lambda x: 1e4 + (x[0] - 0.1) ** 4, 0.1, line()), 3 / 4)


def test_batched_losses():
    found = lojasiewicz(fp.batched(lambda x: np.sum(x**2, axis=1) ** 2), (0, 0), square(2.0), radius=1.0)
    assert covers(found, 3 / 4)


def networks(kind):
    """Losses of a sample, a minimum, and θ there."""
    np_ = pytest.importorskip("torch" if kind == "torch" else "jax.numpy")
    return {
        # = u²v² in coordinates u = a, v = b (1 + ...): two valleys cross
        "dead neuron": (lambda w, x: (w[0] * np_.tanh(w[1] * x)) ** 2 / 2, (0, 0), 3 / 4),
        # as many parameters as the teacher, and a regular Hessian
        "neuron": (lambda w, x: (w[0] * np_.tanh(w[1] * x) - np_.tanh(x)) ** 2 / 2, (1, 1), 1 / 2),
        # three linear layers at the origin: homogeneous of degree 6
        "deep linear": (lambda w, x: (w[0] * w[1] * w[2] * x) ** 2 / 2, (0, 0, 0), 5 / 6),
    }


@pytest.mark.parametrize(
    ("kind", "name"), [("torch", "dead neuron"), ("torch", "neuron"), ("torch", "deep linear"), ("jax", "dead neuron")]
)
def test_small_networks(kind, name):
    loss, point, theta = networks(kind)[name]
    noise = getattr(fp.PerSample, f"from_{kind}")(loss, (np.random.default_rng(0).normal(size=6),))
    domain = square(2.0) if len(point) == 2 else fp.Domain.box((-1, -1, -1), (1, 1, 1), (2, 2, 2))
    assert covers(lojasiewicz(fp.SGD(None, noise, 0.1), point, domain), theta, 0.05)


FAMILIES = ("|x|^q", "x^4 + x^2", "u^2 + v^4", "u^2 + v^6", "form of degree 4", "valley", "crossing valleys")


def random_landscape(family, seed):
    """θ, f and the minimum of a random loss with a known exponent: moved, turned, and bent by higher orders."""
    r = np.random.default_rng(seed)
    a, b, c = r.uniform(-0.6, 0.6, 3)
    k, phi, q = r.uniform(0.5, 2), r.uniform(0, np.pi), r.uniform(2, 6)
    point, small = r.uniform(-0.3, 0.3, 2), 10 ** r.uniform(-3, -1)
    numbers = [a, b, c, k, np.cos(phi), np.sin(phi), q, small, *point]

    def loss(x):
        mesh = ufl.domain.extract_unique_domain(x)
        a, b, c, k, cos, sin, q, small, X, Y = (fem.Constant(mesh, v) for v in numbers)  # compiled once per family
        if family == "|x|^q":
            return abs(x[0] - X) ** q * (k + b * (x[0] - X) + c * (x[0] - X) ** 2)
        if family == "x^4 + x^2":
            return (x[0] - X) ** 4 + small * (x[0] - X) ** 2
        u, v = cos * (x[0] - X) + sin * (x[1] - Y), cos * (x[1] - Y) - sin * (x[0] - X)
        return {
            "u^2 + v^4": k * u**2 + v**4 + b * u * v**3 + c * v**5,
            "u^2 + v^6": k * u**2 + v**6 + b * u * v**4 + c * v**7,
            "form of degree 4": (k * u**2 + b * u * v + v**2) ** 2 + c * u**5 + a * u**4 * v,
            "valley": (v - a * u - 2 * b * u**2) ** 2 * (k + c * u),
            "crossing valleys": u**2 * (v + b * u**2) ** 2 * (1 + c * u),
        }[family]

    theta = {"|x|^q": 1 - 1 / q, "x^4 + x^2": 1 / 2, "u^2 + v^6": 5 / 6, "valley": 1 / 2}.get(family, 3 / 4)
    return theta, loss, point


def test_intervals_cover_the_truth_and_are_short():
    domains, hits, widths = (line(), square()), 0, []
    for seed in range(20):
        family = FAMILIES[seed % len(FAMILIES)]
        theta, loss, point = random_landscape(family, seed)
        domain = domains[0] if "x" in family else domains[1]
        low, high = lojasiewicz(loss, point[: domain.dim], domain, seed=seed).interval
        hits += low <= theta <= high
        widths.append(high - low)
    assert hits >= 18
    assert max(widths) < 0.1


def test_an_exponent_between_two_is_not_claimed():
    """x^4 + 1e-5 x^2 changes from 3/4 to 1/2 where rounding begins: the interval is wide."""
    low, high = lojasiewicz(lambda x: x[0] ** 4 + 1e-5 * x[0] ** 2, 0.0, line(), radius=0.5).interval
    assert low < 0.5 and high > 0.75


@pytest.mark.parallel
def test_the_same_on_all_ranks_and_for_the_same_seed():
    f = lambda x: (x[0] + x[1] ** 2) ** 2 + x[1] ** 4  # noqa: E731
    domain = square()
    found = [lojasiewicz(f, (0, 0), domain, seed=3) for _ in range(2)]
    assert found[0].theta == found[1].theta
    assert len({str(e) for e in domain.comm.allgather(found[0])}) == 1


@pytest.mark.parallel
def test_bad_input():
    I, S = line(), square()  # noqa: E741
    well, saddle = fp.landscapes.double_well, lambda x: x[0] ** 2 - x[1] ** 2
    refused(lambda: lojasiewicz(lambda x: x[0] ** 2, 0.5, I), ValueError, "no critical point", "critical_points")
    refused(lambda: lojasiewicz(saddle, (0, 0), S), ValueError, "no minimum", "f is lower by")
    refused(lambda: lojasiewicz(lambda x: -(x[0] ** 2), 0.0, I), ValueError, "no minimum")
    refused(lambda: lojasiewicz(well, 1.0, fp.Domain.interval(-2, 2, 8), radius=1.5), ValueError, "outside the mesh")
    refused(lambda: lojasiewicz(well, 1.0, I, radius=-1.0), ValueError, "radius is -1")
    refused(lambda: lojasiewicz(well, 1.0, I), ValueError, "boundary of the domain")
    refused(lambda: lojasiewicz(well, 3.0, I), ValueError, "outside the mesh")
    refused(lambda: lojasiewicz(well, [[0.0], [1.0]], I), ValueError, "one point was expected")
    refused(lambda: lojasiewicz(lambda x: ufl.sqrt(x[0] - 0.01) ** 4, 0.05, I), ValueError, "not finite")
    refused(lambda: lojasiewicz(lambda x: 1 + 1e-14 * x[0] ** 2, 0.0, I), ValueError, "too few decades")
    refused(lambda: lojasiewicz(lambda x: 1.0 + 0 * x[0], 0.0, I), ValueError, "does not depend on x")
    refused(lambda: lojasiewicz(fp.SDE(0.0, 1.0), 0.0, I), TypeError, "SDE has no loss")


# -- The decay of E f


def quartic(eta):
    """f = x⁴ and Σ = x⁴, D = η x⁴/2: interpolating noise that scales as the drift does."""
    return fp.SGD(lambda x: x[0] ** 4, fp.Covariance(lambda x: ((x[0] ** 4,),)), eta)


def exact_quartic(eta, times):
    """E X⁴ from X₀ = 1: Z = X⁻² solves dZ = (8 + 3η) dt − 2√η √Z dW, so Z/η is a squared Bessel process."""
    dimension, values = (8 + 3 * eta) / eta, []
    for t in times:
        s = eta * t  # Z(t) = s χ'² with non-centrality 1/s
        mean, deviation = dimension + 1 / s, np.sqrt(2 * (dimension + 2 / s))
        ends = max(1e-9, mean - 12 * deviation), mean + 14 * deviation
        values.append(quad(lambda y, s=s: ncx2.pdf(y, dimension, 1 / s) / (s * y) ** 2, *ends, points=[mean])[0])
    return np.array(values)


@pytest.mark.parallel
def test_algebraic_decay_under_interpolating_noise():
    """θ = 3/4 predicts t⁻² for f = x⁴; the exact process has it, with the noise in a fixed proportion to the drift."""
    process, times = quartic(0.2), np.geomspace(1, 50, 12)
    domain = fp.Domain.interval(-2, 2, 160)
    flow = fp.evolve(fp.Generator(process, domain), fp.dirac(1.0), times, time_rtol=1e-8)
    found = loss_decay(flow, lojasiewicz(process, 0.0, domain))
    assert found.excess == pytest.approx(exact_quartic(0.2, times), rel=2e-5)
    assert found.noise / found.drift == pytest.approx(np.full(12, 6 * 0.2 / 16), rel=2e-4)
    assert found.regime.all() and found.law == "algebraic"
    assert found.predicted == pytest.approx(2, abs=1e-3)
    assert found.measured == pytest.approx(2, abs=5e-3)
    low, high = found.measured_interval
    assert low <= 2 <= high and high - low < 0.05
    assert "algebraic decay" in str(found)


@pytest.mark.parallel
def test_exponential_decay_and_what_interpolating_noise_takes_from_it():
    """f = x²/2, Σ = x²: c² = 2, and E X² = e^{−(2 − η)t} X₀²."""
    process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Covariance(lambda x: ((x[0] ** 2,),)), 0.1)
    domain, times = fp.Domain.interval(-4, 4, 96), np.linspace(0.2, 1.5, 8)
    flow = fp.evolve(fp.Generator(process, domain), fp.gaussian(1.0, 0.1), times, time_rtol=1e-8)
    found = loss_decay(flow, lojasiewicz(process, 0.0, domain))
    assert found.law == "exponential"
    assert found.predicted == pytest.approx(2, rel=1e-3)
    assert found.excess == pytest.approx(np.exp(-1.9 * times) * 1.01 / 2, rel=1e-4)
    assert found.measured == pytest.approx(1.9, rel=1e-4)


def test_noise_at_the_minimum_ends_the_drift_regime():
    """Ornstein–Uhlenbeck: E f relaxes to ηs/4; without five times in the drift regime nothing is measured."""
    process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(1.0), 0.1)
    domain, times = fp.Domain.interval(-3, 3, 40), np.array([0.1, 1.0, 3.0, 8.0])
    flow = fp.evolve(fp.Generator(process, domain), fp.gaussian(1.0, 0.1), times)
    found = loss_decay(flow, lojasiewicz(process, 0.0, domain))
    second = np.exp(-2 * times) * 1.01 + 0.05 * (1 - np.exp(-2 * times))
    assert found.excess == pytest.approx(second / 2, rel=1e-5)
    assert found.drift == pytest.approx(second, rel=1e-5) and found.noise == pytest.approx(np.full(4, 0.05), rel=1e-5)
    assert found.regime.tolist() == [True, True, False, False]
    assert np.isnan(found.measured) and "noise rules" in str(found)


def test_samples_of_torch_have_a_decay_too():
    torch = pytest.importorskip("torch")
    noise = fp.PerSample.from_torch(lambda x, a: (a * x[0]) ** 2 / 2, (np.array([0.8, 1.2]),))
    process, domain, times = fp.SGD(None, noise, 0.5), fp.Domain.interval(-4, 4, 48), np.linspace(0.2, 1.0, 6)
    flow = fp.evolve(fp.Generator(process, domain), fp.gaussian(1.0, 0.1), times, time_rtol=1e-8)
    found = loss_decay(flow, lojasiewicz(process, 0.0, domain))
    h, spread = 1.04, np.var([0.64, 1.44])  # f = h x²/2, Σ = spread x²
    assert found.excess == pytest.approx(h / 2 * 1.01 * np.exp(-(2 * h - 0.5 * spread) * times), rel=1e-3)
    assert torch and found.measured == pytest.approx(2 * h - 0.5 * spread, rel=1e-3)


def test_bad_decays():
    domain = line()
    exponent = lojasiewicz(lambda x: x[0] ** 2, 0.0, domain)
    gen = fp.Generator(fp.SDE(lambda x: -2 * x[0], 0.5), domain, ["right"])
    flow = fp.evolve(gen, fp.gaussian(0.0, 0.2), [0.1, 1.0])
    refused(lambda: loss_decay(flow, exponent), ValueError, "the mass falls to", "without absorbing")
    closed = fp.evolve(fp.Generator(fp.SDE(lambda x: -2 * x[0], 0.5), domain), fp.gaussian(0.0, 0.2), [0.1, 1.0])
    refused(lambda: loss_decay(closed, exponent), TypeError, "SDE has no loss")
    refused(lambda: loss_decay(closed, exponent, loss=lambda x: x[0] ** 2 - 3), ValueError, "below the minimum")
    refused(lambda: loss_decay(fp.backward(gen, 1.0, [1.0]), exponent), TypeError, "evolution of a density")
