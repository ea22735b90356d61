"""Formulas of x and t: evolved, followed by paths, refused where a question is about what stands still."""

import numpy as np
import pytest
import ufl
from tools import within

import fpsolver as fp
from fpsolver.models.fields import integrate

A, W = 1.0, 2.0
LINE = fp.Domain.interval(-4, 4, 20)
START = fp.gaussian(0.0, 0.15**0.5)


def mean(t):
    """Of dX = (a sin ωt − X) dt + ..., X₀ = 0."""
    return A * (np.sin(W * t) - W * np.cos(W * t) + W * np.exp(-t)) / (1 + W * W)


def variance(t, eps=0.1):
    """Of dX = −X dt + √(2ε(1 + cos ωt)) dW from START on, as whenever the start is forgotten."""
    return eps * (1 + (4 * np.cos(W * t) + 2 * W * np.sin(W * t)) / (4 + W * W))


def trap():
    return fp.SDE(lambda x, t: (A * ufl.sin(W * t) - x[0],), 0.1)


def breathing(convention="ito"):
    return fp.SDE(lambda x: (-x[0],), lambda x, t: 0.1 * (1 + ufl.cos(W * t)), convention)


def moment(gen, law, k):
    x = ufl.SpatialCoordinate(gen.domain.mesh)
    return integrate(gen.domain.mesh, law.function * x[0] ** k, 12)


@pytest.mark.parallel
def test_a_driven_trap():
    """The mean at t = 1 is 0.49547, forward and backward."""
    gen = fp.Generator(trap(), LINE)
    assert mean(1.0) == pytest.approx(0.49547, abs=1e-6)
    law = fp.evolve(gen, fp.gaussian(0.0, 0.3), [1.0])[0]
    assert moment(gen, law, 1) == pytest.approx(mean(1.0), rel=1e-5)
    assert fp.backward(gen, lambda x: x[0], [1.0])[0].at((0.0,))[0] == pytest.approx(mean(1.0), rel=1e-5)


@pytest.mark.parallel
@pytest.mark.parametrize("convention", ["ito", "divergence"])
def test_a_diffusion_that_breathes(convention):
    gen = fp.Generator(breathing(convention), LINE)
    law = fp.evolve(gen, START, [1.0])[0]
    assert moment(gen, law, 2) == pytest.approx(variance(1.0), rel=1e-5)


@pytest.mark.parallel
def test_a_langevin_process_whose_loss_moves():
    """The time and a number of one's own, which is on a schedule as well: −∇f = k(a sin ωt − x), k = 1."""
    loss = lambda x, t, k: k * (x[0] - A * ufl.sin(W * t)) ** 2 / 2  # noqa: E731
    process = fp.Langevin(loss, 0.1, parameters={"k": 3.0})
    schedule = {"k": [(0.0, 1.0)]}
    gen = fp.Generator(process, LINE)
    law = fp.evolve(gen, fp.gaussian(0.0, 0.3), [1.0], schedule=schedule)[0]
    assert moment(gen, law, 1) == pytest.approx(mean(1.0), rel=1e-5)
    paths = fp.simulate(process, None, 0.0, times=[1.0], step=0.005, paths=20_000, schedule=schedule)
    within(paths.expectation(lambda x: x[0])[0], mean(1.0))


@pytest.mark.parallel
@pytest.mark.parametrize("backend", ["numpy", "c"])
def test_paths_follow_the_time(backend):
    options = {"step": 0.005, "paths": 20_000, "backend": backend}
    paths = fp.simulate(trap(), None, 0.0, times=[0.5, 1.0], **options)
    for t, found in zip(paths.times, paths.expectation(lambda x: x[0]), strict=True):
        within(found, mean(t))
    for convention in ("ito", "divergence", "stratonovich"):
        paths = fp.simulate(breathing(convention), None, START, times=[1.0], **options)
        within(paths.expectation(lambda x: x[0] ** 2)[0], variance(1.0))
    sgd = fp.SGD(lambda x, t: (x[0] - A * ufl.sin(W * t)) ** 2 / 2, fp.Isotropic(2.0), 0.1)
    within(fp.simulate(sgd, None, 0.0, times=[1.0], **options).expectation(lambda x: x[0])[0], mean(1.0))


def test_the_time_can_be_stopped():
    """Then it is a number like others, and the process one like others."""
    gen = fp.Generator(breathing(), LINE).replace(t=0.0)
    assert fp.stationary(gen).at((0.0,))[0] == pytest.approx(1 / np.sqrt(2 * np.pi * 0.2), rel=1e-6)
    frozen = fp.SDE(lambda x, t: (t - x[0],), 0.1, parameters={"t": 0.5})
    assert frozen.numbers() == {"diffusion": 0.1, "t": 0.5} and not frozen.timed
    assert fp.SDE(lambda x, t: (t - x[0],), 0.1).with_parameters(diffusion=0.2).timed
    assert not fp.SDE(lambda x, t=1.0: (t - x[0],), 0.1).timed


@pytest.mark.parallel
def test_questions_about_what_stands_still():
    gen = fp.Generator(trap(), LINE, ["right"])
    for ask in (
        lambda: fp.mean_exit_time(gen),
        lambda: fp.stationary(gen),
        lambda: fp.spectrum(gen),
        lambda: fp.survival(gen, 0.0, [1.0]),
        lambda: fp.committor(gen, "left", "right"),
        lambda: fp.mean_exit_time(fp.Generator(fp.Noisy(trap(), 0.1), LINE, ["right"])),
    ):
        with pytest.raises(ValueError, match=r"depends on the time t.*gen\.replace\(t=0\.0\)"):
            ask()
    with pytest.raises(TypeError, match="a loss that moves"):
        fp.diagnostics.critical_points(fp.Langevin(lambda x, t: (x[0] - t) ** 2, 0.1), LINE)
    sgd = fp.SGD(None, fp.PerSample([lambda x, t: x[0] ** 2 * t, lambda x: x[0]]), 0.1)
    with pytest.raises(ValueError, match="asks for the time t"):
        fp.Chain(sgd, LINE, ["right"])
    with pytest.raises(ValueError, match="no formulas of the time"):
        fp.simulate(sgd, None, 0.0, times=[1.0], method="sgd")
    with pytest.raises(ValueError, match="learning_rate of SGD cannot change"):
        fp.simulate(
            fp.SGD(lambda x: x[0] ** 2, fp.Isotropic(1.0), 0.1), None, 0.0, times=[1.0], schedule={"learning_rate": 0.2}
        )
    with pytest.raises(ValueError, match="no numeric parameter 'k'"):
        fp.simulate(trap(), None, 0.0, times=[1.0], step=0.1, schedule={"k": 0.2})
