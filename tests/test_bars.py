"""Error bars of laws, evolutions, rates and spectra, beside exact values: between half and twice the error.

``pytest -s`` prints the table.
"""

import numpy as np
import pytest
import ufl
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

import fpsolver as fp
from fpsolver import Domain

pytestmark = pytest.mark.parallel
WELL = lambda x: (x[0] ** 2 - 1) ** 2 / 4 + 0.1 * x[0]  # noqa: E731
T = 0.1
EVERYWHERE = (-2.2, 2.2)


def density(x):
    return np.exp(-((x**2 - 1) ** 2 / 4 + 0.1 * x) / T)


def integral(f, a, b):
    middle = [x for x in (-1.0, 0.0, 1.0) if a < x < b]
    return quad(f, a, b, points=middle or None, epsabs=0, epsrel=1e-13, limit=400)[0]


def mean(f, a=EVERYWHERE[0], b=EVERYWHERE[1]):
    return integral(lambda x: f(x) * density(x), a, b) / integral(density, *EVERYWHERE)


def rows_of_well(n):
    p = fp.stationary(fp.Generator(fp.Langevin(WELL, T), Domain.interval(*EVERYWHERE, n)))
    m = mean(lambda x: x)
    yield "mean", p.mean(), m
    yield "variance", p.covariance(), mean(lambda x: (x - m) ** 2)
    yield "cosine", p.expectation(lambda x: ufl.cos(2 * x[0])), mean(lambda x: np.cos(2 * x))
    yield "half-line", p.mass_in(lambda x: x[0] > 0.123), mean(lambda x: 1.0, 0.123)
    yield "ball", p.mass_in((0.5, 0.2)), mean(lambda x: 1.0, 0.3, 0.7)
    yield "value", (p.at(-0.9), p.error_at(-0.9)), density(-0.9) / integral(density, *EVERYWHERE)


def rows_of_plane(n):
    loss = lambda x: WELL(x) + x[1] ** 2 / 2  # noqa: E731
    p = fp.stationary(fp.Generator(fp.Langevin(loss, T), Domain.rectangle((-2.2, -1.8), (2.2, 1.8), (n, n))))
    yield "mean", p.expectation(lambda x: x[0]), mean(lambda x: x)
    yield "strip", p.mass_in([(-2.2, -1.8), (-0.5, -1.8), (-0.5, 1.8), (-2.2, 1.8)]), mean(lambda x: 1.0, -2.2, -0.5)
    yield "sine", p.expectation(lambda x: ufl.sin(x[0] + 1)), mean(lambda x: np.sin(x + 1))


def rows_of_pearson(n):
    # dX = −X dt + √(η(1 + X²)) dW, η = 0.2: density ∝ (1 + x²)^{-6}
    sgd = fp.SGD(lambda w: w[0] ** 2 / 2, fp.Covariance(lambda w: 1 + w[0] ** 2), 0.2)
    p = fp.stationary(fp.Generator(sgd, Domain.interval(-30, 30, n).mapped(lambda x: (30 * (x[0] / 30) ** 3,))))
    yield "P(|X| < 1)", p.mass_in((0.0, 1.0)), 0.993127696691079
    yield "density at 0", (p.at(0.0), p.error_at(0.0)), 1.2934496962389
    yield "variance", p.covariance(), 1 / 9


def rows_of_flow(n):
    gen = fp.Generator(fp.Langevin(lambda x: x[0] ** 2 / 2, 0.5), Domain.interval(-6, 6, n))
    p = fp.evolve(gen, fp.gaussian(1.0, 0.4), [0.2, 0.8])[1]
    m, v = np.exp(-0.8), 0.16 * np.exp(-1.6) + 0.5 * (1 - np.exp(-1.6))
    yield "mean of cos", p.expectation(lambda x: ufl.cos(2 * x[0])), np.cos(2 * m) * np.exp(-2 * v)
    yield "mass", p.mass_in(lambda x: x[0] > 0.3), norm.sf(0.3, m, np.sqrt(v))
    yield "value", (p.at(0.5), p.error_at(0.5)), norm.pdf(0.5, m, np.sqrt(v))
    u = fp.backward(gen, lambda x: ufl.cos(2 * x[0]), 0.8)[0]
    yield "backward", (u.at(1.0), u.error_at(1.0)), np.cos(2 * m) * np.exp(-2 * (v - 0.16 * np.exp(-1.6)))


def rows_of_kinetic(n):
    # dx = v dt, dv = −(x + v) dt + √2 dW from a Gaussian: moments of a linear process
    process = fp.SDE(lambda x: (x[1], -x[0] - x[1]), ((0, 0), (0, 1)))
    gen = fp.Generator(process, Domain.rectangle((-7, -7), (7, 7), (n, n)))
    flow = fp.evolve(gen, fp.gaussian((1.0, 0.0), 1.0), 1.0)
    spread = [[1.0, 0.0], [0.0, 1.0]]  # the invariant covariance, which the start has
    at = multivariate_normal((0.659700153391702, -0.533507195114693), spread)
    yield "kinetic value", (flow[0].at((1.0, 0.5)), flow[0].error_at((1.0, 0.5))), at.pdf((1.0, 0.5))
    yield "kinetic mean", flow[0].expectation(lambda x: x[0]), 0.659700153391702


def rows_of_exits(n):
    gen = fp.Generator(fp.SDE((0.0,), 0.5), Domain.interval(0, 1, n), ["left", "right"], degree=3)
    k = 2 * np.arange(200) + 1
    curve = fp.survival(gen, 0.3, [0.02, 0.1, 0.5])
    exact = [
        float((4 / np.pi / k * np.sin(k * np.pi * 0.3) * np.exp(-((k * np.pi) ** 2) * t / 2)).sum())
        for t in (0.02, 0.1, 0.5)
    ]
    yield "survival", (curve, curve.error), exact
    drifting = fp.Generator(fp.SDE((2.0,), 0.5), Domain.interval(0, 1, n), ["left", "right"], degree=2)
    law = fp.exit_distribution(drifting, 0.3)
    right = (1 - np.exp(-4 * 0.3)) / (1 - np.exp(-4))
    yield "exit right", (law.probability["right"], law.error["right"]), right
    q = fp.quasi_stationary(gen)
    yield "rate", (q.rate, q.rate_error), np.pi**2 / 2


def rows_of_spectra(n):
    gen = fp.Generator(fp.Langevin(lambda x: x[0] ** 2 / 2, 0.5), Domain.interval(-7, 7, n))
    s = fp.spectrum(gen, 4)
    for i in (1, 2, 3):
        yield f"eigenvalue {i}", (s.eigenvalues[i].real, s.error[i]), -float(i)


def rows_of_transitions(n):
    gen = fp.Generator(fp.Langevin(WELL, T), Domain.interval(*EVERYWHERE, n))
    inverse = integral(lambda x: 1 / density(x), -0.9, 0.8)
    r = fp.transition_rate(gen, lambda x: x[0] <= -0.9, lambda x: x[0] >= 0.8)
    yield "transition rate", (r.rate, r.error), T / inverse / integral(density, *EVERYWHERE)
    passage = fp.first_passage(gen, {"a": (-0.95, 0.05), "b": (0.85, 0.05)})
    exact = integral(lambda y: integral(density, EVERYWHERE[0], y) / density(y), -0.95, 0.8) / T
    yield "first passage", (passage.times[0, 1], passage.error[0, 1]), exact


CASES = [
    *((rows_of_well, n) for n in (10, 16)),
    *((rows_of_plane, n) for n in (7, 10)),
    *((rows_of_pearson, n) for n in (16, 24)),
    *((rows_of_flow, n) for n in (10, 16)),
    *((rows_of_kinetic, n) for n in (12,)),
    *((rows_of_exits, n) for n in (4, 7)),
    *((rows_of_spectra, n) for n in (8, 12)),
    *((rows_of_transitions, n) for n in (10, 16)),
]


@pytest.mark.parametrize(("rows", "n"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_effectivity(rows, n):
    for name, answer, exact in rows(n):
        value, error = answer if isinstance(answer, tuple) else (answer.value, answer.error)
        for got, bar, true in zip(np.ravel(value), np.ravel(error), np.ravel(exact), strict=True):
            off = abs(got - true)
            print(
                f"{rows.__name__[8:]:12} {n:3} {name:16} {got:16.10g} error {off:8.1e} bar {bar:8.1e} {bar / off:8.2f}"
            )
            if off > 1e-11 * abs(true):
                assert 0.5 < bar / off < 2, (name, got, true, bar)


def double_well(parts=()):
    ends = (-1.6, 1.5) if parts else EVERYWHERE
    return fp.Generator(fp.Langevin(WELL, T), Domain.interval(*ends, 8), parts)


@pytest.mark.parametrize(
    ("ask", "bar"),
    [
        (lambda **more: fp.stationary(double_well(), **more), lambda p: p.error[0]),
        (lambda **more: fp.spectrum(double_well(), 3, **more), lambda s: (s.error / np.abs(s.eigenvalues))[1:].max()),
        (lambda **more: fp.quasi_stationary(double_well(["right"]), **more), lambda q: q.rate_error / q.rate),
        (lambda **more: fp.evolve(double_well(), fp.gaussian(0.0, 0.3), [0.1, 2.0], **more), lambda f: f[0].error[0]),
        (lambda **more: fp.backward(double_well(), lambda x: x[0] ** 2, 0.5, **more), lambda f: f[0].error[0] / 10),
        (lambda **more: fp.survival(double_well(["left"]), 0.0, [0.1, 5.0], **more), lambda s: s.error.max()),
        (
            lambda **more: fp.exit_distribution(double_well(["left", "right"]), 0.2, **more),
            lambda law: max(law.error.values()),
        ),
        (lambda **more: fp.transition_rate(double_well(), (-1.0, 0.2), (1.0, 0.2), **more), lambda r: r.error / r.rate),
        (
            lambda **more: fp.first_passage(double_well(), {"a": (-1.0, 0.2), "b": (1.0, 0.2)}, **more),
            lambda f: f.error[0, 1] / f.times[0, 1],
        ),
    ],
    ids=["stationary", "spectrum", "quasi", "evolve", "backward", "survival", "exits", "rate", "passage"],
)
def test_accuracy_on_request(ask, bar):
    answer = ask(rtol=1e-6)
    assert bar(answer) <= 1e-6 and len(answer.history) > 1
    assert answer.history[0].unknowns < answer.history[-1].unknowns
    with pytest.raises(fp.NotConverged, match="DIVERGED_MAX_UNKNOWNS") as failure:
        ask(rtol=1e-6, max_unknowns=40)
    assert failure.value.partial is not None


def test_an_unresolved_density_says_so_first():
    narrow = fp.Generator(fp.Langevin(lambda x: x[0] ** 2 / 2, 1e-4), Domain.interval(-1, 1.1, 5))
    p = fp.stationary(narrow)
    assert "WARNING: the mesh does not resolve it" in str(p).splitlines()[0]
    assert p.error[0] > 0.5
    p = fp.stationary(narrow, rtol=1e-3)
    assert "WARNING" not in str(p) and float(p.covariance().value[0, 0]) == pytest.approx(1e-4, rel=1e-6)


def test_laws_of_chains():
    # X' = (1 − η) X ± η with fair signs: mean 0, variance η/(2 − η), and geometric forgetting
    losses = [lambda w, a=a: (w[0] - a) ** 2 / 2 for a in (-1.0, 1.0)]
    chain = fp.Chain(fp.SGD(None, fp.PerSample(losses), 0.4), Domain.interval(-1.5, 1.5, 24))
    law = fp.evolve(chain, fp.gaussian(0.3, 0.1), [0.8])[0]
    assert law.mean().value == pytest.approx([0.3 * 0.6**2], abs=1e-10)
    mass = law.mass_in(lambda x: x[0] > 0)
    paths = sum(norm.sf(0, 0.108 + 0.6 * 0.4 * a + 0.4 * b, 0.036) for a in (-1, 1) for b in (-1, 1)) / 4
    assert abs(mass.value - paths) <= mass.error < 1e-2
    s = fp.spectrum(chain, 3)
    assert abs(s.eigenvalues[1].real - np.log(0.6) / 0.4) <= s.error[1] + 1e-9
    with pytest.raises(ValueError, match=r"rtol is 0\.001"):
        fp.stationary(chain, rtol=1e-3)


def test_bars_contain_the_shape_of_a_disk():
    q = fp.quasi_stationary(fp.Generator(fp.SDE((0.0, 0.0), 0.5), Domain.disk((0, 0), 1, 0.5), ["boundary"]))
    off = abs(q.rate - 2.404825557695773**2 / 2)  # the first zero of J0
    assert 0.5 < q.rate_error / off < 4


def test_mass_where_no_cell_is():
    mass = fp.stationary(double_well()).mass_in(lambda x: x[0] > 100)
    assert (mass.value, mass.error) == (0.0, 0.0)


def test_a_checkpoint_belongs_to_one_mesh(tmp_dir):
    with pytest.raises(ValueError, match="None with rtol, for which the mesh changes"):
        fp.evolve(double_well(), fp.gaussian(0.0, 0.3), 1.0, rtol=1e-3, checkpoint=tmp_dir / "kept")
