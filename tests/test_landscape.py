"""Landscape reports and star-convexity against values by hand."""

import numpy as np
import pytest
import ufl
from scipy.optimize import brentq
from test_errors import refused

import fpsolver as fp
from fpsolver.diagnostics import collapse, critical_points, landscape, loss_decay, star_convexity
from fpsolver.landscapes import double_well, three_hole

ROWS = np.array([[1.0, 0.5], [0.3, 1.2], [-0.7, 0.4]])
TARGET = np.array([0.4, -0.3])


def square(n=4):
    return fp.Domain.rectangle((-1, -1), (1, 1), (n, n))


def least_squares(kind="ufl", shift=0.0):
    """f_i = (a_i·(x − x*) − shift·y_i)²/2 with labels y = (1, −1, 0); interpolating without a shift."""
    labels = shift * np.array([1.0, -1.0, 0.0])
    if kind == "ufl":
        return fp.PerSample(
            [
                lambda x, a=a, y=y: (a[0] * (x[0] - TARGET[0]) + a[1] * (x[1] - TARGET[1]) - y) ** 2 / 2
                for a, y in zip(ROWS, labels, strict=True)
            ]
        )
    pytest.importorskip("torch" if kind == "torch" else "jax")
    make = getattr(fp.PerSample, f"from_{kind}")
    if kind == "torch":
        import torch

        return make(lambda x, a, y: (a @ (x - torch.tensor(TARGET)) - y) ** 2 / 2, (ROWS, labels))
    return make(lambda x, a, y: (a @ (x - TARGET) - y) ** 2 / 2, (ROWS, labels))


@pytest.mark.parallel
@pytest.mark.parametrize("kind", ["ufl", "torch", "jax"])
def test_critical_points_of_samples(kind):
    """Normal equations; Σ = mean of g gᵀ, since the mean gradient vanishes."""
    (c,) = critical_points(fp.SGD(None, least_squares(kind, 0.3), 0.1), square())
    y = 0.3 * np.array([1.0, -1.0, 0.0])
    delta = np.linalg.lstsq(ROWS, y, rcond=None)[0]
    residual = ROWS @ delta - y
    assert c.exact and c.kind == "minimum"
    assert c.point == pytest.approx(TARGET + delta, abs=1e-12)
    assert c.value == pytest.approx(np.mean(residual**2) / 2, rel=1e-12)
    assert np.allclose(c.hessian, ROWS.T @ ROWS / 3, rtol=0, atol=1e-10)
    assert np.allclose(c.covariance, (ROWS * residual[:, None] ** 2).T @ ROWS / 3, rtol=1e-9, atol=1e-14)


def test_noises_of_both_kinds_add():
    both = least_squares("torch", 0.3) + fp.Isotropic(0.5)
    (c,) = critical_points(fp.SGD(None, both, 0.1), square())
    (alone,) = critical_points(fp.SGD(None, least_squares("torch", 0.3), 0.1), square())
    assert np.allclose(c.covariance, alone.covariance + 0.5 * np.eye(2), atol=1e-12)


@pytest.mark.parallel
def test_flatness_and_alignment_by_hand():
    """H = diag(1, 4); noise aligned, crossed and turned by 30 degrees."""
    loss, domain = lambda x: x[0] ** 2 / 2 + 2 * x[1] ** 2, square()
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turned = ((c, -s), (s, c)) @ np.diag([0.0, 1.0]) @ np.transpose(((c, -s), (s, c)))
    cases = (
        (np.diag([1.0, 4.0]), 1.0),
        (np.diag([1.0, 0.0]), 1 / np.sqrt(17)),
        (turned, np.sum(np.diag([1.0, 4.0]) * turned) / np.sqrt(17)),
    )
    for Sigma, alignment in cases:
        report = landscape(fp.SGD(loss, fp.Covariance(Sigma.tolist()), 0.1), domain, exponents=False)
        (p,) = report.points
        assert p.hessian == pytest.approx(np.diag([1.0, 4.0]), rel=1e-13)
        assert p.alignment == pytest.approx(alignment, rel=1e-12)
        assert p.exponent is None
    (p,) = landscape(fp.SGD(loss, fp.Isotropic(2.0), 0.1), domain, exponents=False).points
    assert p.alignment == pytest.approx(5 / np.sqrt(17 * 2), rel=1e-12)
    (p,) = landscape(fp.Langevin(loss, 0.1), domain, exponents=False).points
    assert np.isnan(p.alignment)


@pytest.mark.parallel
def test_interpolation_points_are_found_and_their_collapse_is_judged():
    """tr Σ = δᵀQδ with Q = mean |a|² a aᵀ − H²."""
    H = ROWS.T @ ROWS / 3
    Q = (ROWS * np.sum(ROWS**2, axis=1)[:, None]).T @ ROWS / 3 - H @ H
    s2, smallest = np.linalg.eigvalsh(Q)[-1], np.linalg.eigvalsh(H)[0]
    noise, domain = least_squares(), square()
    (c,) = critical_points(fp.SGD(None, noise, 0.5), domain)
    for eta, batch in ((0.5, 1), (2.0, 1), (2.0, 3)):
        found = collapse(fp.Generator(fp.SGD(None, noise, eta, batch), domain), c.point)
        assert found.stationary and found.point == pytest.approx(TARGET, abs=1e-12)
        assert found.relative_noise == pytest.approx(eta / batch * s2, rel=1e-8)
        assert found.pull == pytest.approx(smallest, rel=1e-8)
        assert found.rate == pytest.approx(2 * smallest - eta * s2 / batch, abs=1e-7)
        assert found.collapses == (eta * s2 / batch < 2 * smallest) == (eta / batch < 1)
    assert not collapse(fp.Generator(fp.SGD(None, least_squares(shift=0.3), 0.5), domain), TARGET).stationary


@pytest.mark.parallel
def test_noise_vanishes_at_a_dead_neuron():
    """f_i = (w₀w₁x_i − y_i)²/2 near 0: ∇f_i = −x_i y_i (w₁, w₀), a saddle that is invariant and repels."""
    x, y = np.array([1.0, 2.0, 0.5]), np.array([1.0, 0.3, 1.4])
    losses = [lambda w, a=a, b=b: (a * w[0] * w[1] - b) ** 2 / 2 for a, b in zip(x, y, strict=True)]
    domain = fp.Domain.rectangle((-0.5, -0.5), (0.5, 0.5), (4, 4))
    process = fp.SGD(None, fp.PerSample(losses), 0.2, 2)
    (c,) = critical_points(process, domain)
    found = collapse(fp.Generator(process, domain), c.point)
    pull, noise = -np.mean(x * y), 0.1 * np.var(x * y)
    assert c.kind == "saddle" and found.stationary and not found.collapses
    assert (found.pull, found.relative_noise) == pytest.approx((pull, noise), rel=1e-7)
    assert found.rate == pytest.approx(2 * pull - noise, rel=1e-7)


def test_noise_that_vanishes_faster_or_slower_than_quadratically():
    loss, domain = lambda x: x[0] ** 2, fp.Domain.interval(-1, 1.1, 7)
    for power, s2, collapses in ((1, np.inf, False), (2, 1.0, True), (4, 0.0, True)):
        process = fp.SGD(loss, fp.Covariance(lambda x, p=power: ((abs(x[0]) ** p,),)), 1.0)
        found = collapse(fp.Generator(process, domain), 0.0)
        assert found.relative_noise == pytest.approx(s2, abs=1e-9)
        assert found.collapses is collapses and found.stationary is collapses


@pytest.mark.parallel
def test_the_rate_of_collapse_is_that_of_the_equation():
    """f = x²/2, Σ = x²: E X² decays at the rate 2 − η, at which the law collapses."""
    process = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Covariance(lambda x: ((x[0] ** 2,),)), 0.2)
    domain = fp.Domain.interval(-5, 5, 101)
    gen = fp.Generator(process, domain)
    flow = fp.evolve(gen, fp.gaussian(1.0, 0.1), np.linspace(0.2, 1, 5), time_rtol=1e-8)
    (p,) = landscape(process, domain).minima
    decay, rate = loss_decay(flow, p.exponent), collapse(gen, p.point).rate
    assert rate == pytest.approx(1.8, rel=1e-8)
    assert decay.predicted == pytest.approx(2, rel=1e-3)
    assert decay.measured == pytest.approx(rate, rel=1e-4)


def test_decay_in_each_well():
    """Without noise rates are those of the Hessian, c² = 2 f'' there."""
    process = fp.SGD(double_well, fp.Isotropic(1.0), 1e-3)
    domain = fp.Domain.interval(-1.6, 1.6, 200)
    gen, times = fp.Generator(process, domain), np.linspace(0.1, 1.0, 8)
    minima = landscape(process, domain).minima
    assert [p.point[0] for p in minima] == pytest.approx((-1, 1))
    for p, start in zip(minima, (-1.2, 1.2), strict=True):
        decay = loss_decay(fp.evolve(gen, fp.gaussian(start, 0.02), times), p.exponent)
        assert decay.predicted == pytest.approx(2 * p.eigenvalues[0], rel=1e-2)
        assert decay.measured == pytest.approx(decay.predicted, rel=0.15)


@pytest.mark.parallel
def test_report_of_three_holes(tmp_dir):
    Sigma = lambda x: ((1 + x[0] ** 2, x[0] * x[1] / 2), (x[0] * x[1] / 2, 0.3 + x[1] ** 2))  # noqa: E731
    domain = fp.Domain.rectangle((-2, -1.5), (2, 2.5), (8, 8))
    report = landscape(fp.SGD(three_hole, fp.Covariance(Sigma), 0.1), domain)
    assert [p.kind for p in report.points] == ["minimum"] * 3 + ["saddle"] * 3 + ["maximum"]
    assert len(report.minima) == 3
    for p in report.minima:
        low, high = p.exponent.interval
        assert low <= 0.5 <= high and high - low < 0.02
        x, y = p.point
        assert np.allclose(p.covariance, [[1 + x * x, x * y / 2], [x * y / 2, 0.3 + y * y]], atol=1e-12)
    text = str(report)
    assert len(text.splitlines()) == 8 and "tr Sigma" in text and "(0, 1.5371)" in text
    figure = report.plot(tmp_dir / "landscape.png")
    assert (tmp_dir / "landscape.png").stat().st_size > 20_000
    if domain.comm.rank == 0:
        labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
        assert labels == ["curvature", "noise", "minimum", "saddle", "maximum"]
    else:
        assert figure is None


@pytest.mark.parallel
def test_report_in_one_dimension(tmp_dir):
    report = landscape(fp.Langevin(double_well, 0.1), fp.Domain.interval(-2, 2, 12))
    assert [p.kind for p in report.points] == ["minimum", "minimum", "maximum"]
    assert all(p.exponent.interval[0] <= 0.5 <= p.exponent.interval[1] for p in report.minima)
    assert report.points[2].exponent is None
    report.plot(tmp_dir / "well.png")
    assert (tmp_dir / "well.png").stat().st_size > 10_000


def test_degenerate_minima_and_minima_on_the_boundary():
    (p,) = landscape(lambda x: x[0] ** 4 + x[1] ** 2, square(5)).points
    assert p.kind == "degenerate"
    assert p.exponent.interval[0] <= 0.75 <= p.exponent.interval[1]
    report = landscape(double_well, fp.Domain.interval(-3, -1, 10))
    assert report.points[0].exponent is None
    assert "lies on the boundary" in report.notes[0] and report.notes[0] in str(report)
    saddle = landscape(lambda x: x[0] ** 2 - x[1] ** 2, square())
    assert saddle.minima == () and "no minimum" in str(saddle)


@pytest.mark.parallel
def test_bad_landscapes(tmp_dir):
    line, plane = fp.Domain.interval(-1, 1, 6), square()
    refused(lambda: landscape(lambda x: ufl.exp(x[0]), line), ValueError, "no critical point", "larger domain")
    refused(lambda: landscape(lambda x: (x[0] - x[1]) ** 2, plane), ValueError, "not isolated")
    refused(lambda: landscape(fp.SDE(0.0, 1.0), line), TypeError, "SDE has no loss")
    refused(lambda: landscape(fp.SGD(None, fp.PerSample(fp.batched(np.sin)), 0.1), line), ValueError, "loss=")
    refused(lambda: landscape(lambda x: ufl.sqrt(x[0] - 2), line), ValueError, "finite nowhere")
    box = fp.Domain.box((-1, -1, -1), (1, 1, 1), (2, 2, 2))
    report = landscape(lambda x: x[0] ** 2 + x[1] ** 2 + x[2] ** 2, box, exponents=False)
    refused(lambda: report.plot(tmp_dir / "no.png"), ValueError, "one and two dimensions")


# -- Star-convexity


@pytest.mark.parallel
@pytest.mark.parametrize("kind", ["ufl", "torch", "jax"])
def test_convex_samples_are_star_convex(kind):
    """Also affine ones, where both sides are equal."""
    paths = np.random.default_rng(0).uniform(-1, 1, (7, 5, 2))
    found = star_convexity(fp.SGD(None, least_squares(kind), 0.1), TARGET, paths)
    assert found.share == 1 and found.worst <= 1e-15
    assert (found.per_step == 1).all() and (found.per_sample == 1).all()
    assert (found.paths, *found.per_step.shape, *found.per_sample.shape) == (7, 5, 3)
    low, high = found.interval
    assert 0.5 < low < 1 and high == 1  # seven paths cannot tell 1 from a little less
    affine = fp.PerSample([lambda x: 3 * x[0] - x[1], lambda x: x[1] / 7 - x[0]])
    assert star_convexity(affine, TARGET, paths).share == 1


def cauchy():
    """f_1 = x², f_2 = log(1 + x²), which is star-convex about 0 where 2u/(1 + u) ≥ log(1 + u), u = x²."""
    return fp.PerSample([lambda x: x[0] ** 2, lambda x: ufl.ln(1 + x[0] ** 2)])


EDGE = np.sqrt(brentq(lambda u: 2 * u / (1 + u) - np.log(1 + u), 1, 10))


@pytest.mark.parallel
def test_a_share_that_is_known():
    """On an even grid of [−4, 4]; the worst defect is that of the second sample at the ends."""
    x = np.linspace(-4, 4, 4001)
    found = star_convexity(cauchy(), 0.0, x)
    assert found.per_sample == pytest.approx([1, EDGE / 4], abs=1 / 4000)
    assert found.share == pytest.approx((1 + EDGE / 4) / 2, abs=1 / 4000)
    assert found.worst == pytest.approx(np.log(17) - 32 / 17, rel=1e-12)
    assert found.paths == 4001 and len(found.per_step) == 1
    assert "star-convex: 7" in str(found)


def test_intervals_know_that_paths_are_what_is_independent():
    """Paths that stand still: 50 steps of one path are one observation; 200 trials, each of 40 paths."""
    random, hits, truth = np.random.default_rng(1), 0, (1 + EDGE / 4) / 2
    noise = cauchy()
    trials = random.uniform(-4, 4, (200, 40))
    once = [star_convexity(noise, 0.0, x) for x in trials[:60]]
    hits = sum(e.interval[0] <= truth <= e.interval[1] for e in once)
    assert hits >= 53  # 57 expected, standard deviation 1.7
    still = star_convexity(noise, 0.0, np.repeat(trials[0][:, None, None], 50, axis=1))
    assert still.interval == pytest.approx(once[0].interval)
    assert still.per_step == pytest.approx(np.full(50, once[0].share))


def test_steps_are_told_apart():
    """Paths that leave the star-convex part of the second sample."""
    paths = np.broadcast_to(np.linspace(0.5, 3, 6)[None, :, None], (9, 6, 1))
    found = star_convexity(cauchy(), 0.0, paths)
    assert found.per_step.tolist() == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]  # EDGE is 1.98
    assert found.share == 0.75


@pytest.mark.parallel
def test_bad_star_convexity():
    x = np.zeros((3, 1))
    noise = cauchy()
    refused(lambda: star_convexity(fp.Isotropic(1.0), 0.0, x), TypeError, "Isotropic has no per-sample losses")
    refused(lambda: star_convexity(fp.PerSample(fp.batched(np.sin)), 0.0, x), ValueError, "knows gradients")
    refused(lambda: star_convexity(noise, 0.0, np.zeros((3, 2))), ValueError, "shape")
    refused(lambda: star_convexity(noise, 0.0, np.zeros((3, 4, 2))), ValueError, "paths, steps, 1")
    refused(lambda: star_convexity(noise, 0.0, np.full((3, 2, 1), np.nan)), ValueError, "diverge")
    refused(lambda: star_convexity(noise, np.nan, x), ValueError, "x_star")
    roots = fp.PerSample([lambda x: ufl.sqrt(x[0]), lambda x: x[0] ** 2])
    refused(lambda: star_convexity(roots, 1.0, x - 1), ValueError, "not finite")
