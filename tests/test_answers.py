"""How answers read, what they can be asked, and that they cannot be changed."""

import inspect
import math
import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

import fpsolver as fp

ETA = 0.5


@pytest.fixture(scope="module")
def gen():
    sgd = fp.SGD(lambda x: x[0] ** 2 / 2, fp.Isotropic(1.0), learning_rate=ETA)
    return fp.Generator(sgd, fp.Domain.interval(-1, 1, 6), ["left", "right"], degree=2, scheme="galerkin")


@pytest.fixture(scope="module")
def tau(gen):
    return fp.mean_exit_time(gen, start=0.1)


def test_value_and_error_bar_come_first(tau):
    first = str(tau).splitlines()[0]
    assert first.startswith("mean exit time: 4.48") and " ± 0.006 = 8.97" in first and "steps at (0.1)" in first
    assert float(tau) == tau.value[0] == tau.at(0.1)[0]
    html = tau._repr_html_()
    assert html.count("<b") == 1 and first in html and len(html) < 1000


def test_many_starts_and_none(gen, tau):
    many = fp.mean_exit_time(gen, start=[0.0, 0.1, 0.2, 0.3])
    assert "(4 starts)" in str(many).splitlines()[0]
    assert np.allclose(many.value, many.at([0.0, 0.1, 0.2, 0.3]), rtol=1e-14)
    with pytest.raises(TypeError, match="one start"):
        float(many)
    assert str(fp.mean_exit_time(gen)).startswith("mean exit time: between ")


def test_a_bar_of_more_than_a_tenth_is_warned_about_on_the_first_line():
    gen = fp.Generator(fp.SDE(1.0, 0.01), fp.Domain.interval(0, 1, 5), ["left", "right"], degree=2, scheme="galerkin")
    coarse = fp.exit_probability(gen, "right", start=0.05)
    assert coarse.error[0] > 0.1 * abs(coarse.value[0])
    assert "WARNING: the error bar is " in str(coarse).splitlines()[0] and "#b00020" in coarse._repr_html_()


def test_steps_of_algorithms(gen, tau):
    steps = tau.in_steps()
    assert steps.at(0.1)[0] == pytest.approx(tau.at(0.1)[0] / ETA, rel=1e-14)
    assert steps.error[0] == pytest.approx(tau.error[0] / ETA, rel=1e-14)
    assert steps.error_at(0.2)[0] == pytest.approx(tau.error_at(0.2)[0] / ETA, rel=1e-12)
    second, counted = fp.exit_time_moments(gen, 2)[1], fp.exit_time_moments(gen, 2).in_steps()[1]
    assert counted.at(0.3)[0] == pytest.approx(second.at(0.3)[0] / ETA**2, rel=1e-14)
    law = fp.quasi_stationary(gen)
    assert law.in_steps().rate == pytest.approx(law.rate * ETA) and "steps" in str(law).splitlines()[0]
    modes = fp.spectrum(gen, 2)
    assert modes.in_steps().timescales == pytest.approx(modes.timescales / ETA)
    for answer in (fp.exit_probability(gen, "left"), steps):
        with pytest.raises(ValueError, match="is no time of an algorithm"):
            answer.in_steps()


def test_answers_cannot_be_changed(gen, tau):
    for name in ("function", "raw", "value", "error", "stats", "name", "estimate", "generator", "history"):
        with pytest.raises(AttributeError):
            setattr(tau, name, None)
    with pytest.raises(TypeError):
        tau.stats["unknowns"] = 0
    for answer, name in ((fp.spectrum(gen, 2), "right"), (fp.exit_distribution(gen, 0.1), "mean_time")):
        with pytest.raises(FrozenInstanceError):
            setattr(answer, name, None)


VERBS = (
    "feynman_kac mean_exit_time exit_time_moments exit_probability exit_distribution survival evolve backward resume "
    "stationary spectrum quasi_stationary ergodic_laws committor first_passage transition_rate vanishing_noise_limit"
).split()


@pytest.mark.parametrize("name", VERBS)
def test_the_generator_comes_first_and_what_is_optional_by_keyword(name):
    first, *others = inspect.signature(getattr(fp, name)).parameters.values()
    assert first.name == "gen" and first.default is inspect.Parameter.empty
    for parameter in others:
        optional = parameter.default is not inspect.Parameter.empty
        assert optional is (parameter.kind is inspect.Parameter.KEYWORD_ONLY) or (name, parameter.name) == (
            "spectrum",
            "k",
        )
        assert parameter.name not in ("tol", "steps")


@pytest.mark.parallel
def test_committors_have_error_bars_and_are_refined():
    """dX = 3X dt + dW between A = (−1, −0.6) and B = (0.6, 1), whose ends the mesh has: an error function."""
    gen = fp.Generator(fp.SDE(lambda x: 3 * x[0], 0.5), fp.Domain.interval(-1, 1, 10), degree=2, scheme="galerkin")
    A, B = (lambda x: x[0] < -0.6), (lambda x: x[0] > 0.6)
    exact = (1 + math.erf(0.1 * math.sqrt(3)) / math.erf(0.6 * math.sqrt(3))) / 2
    q = fp.committor(gen, A, B, start=0.1)
    error = abs(float(q) - exact)
    assert 0.5 * error <= q.error[0] < 0.1 * exact
    fine = fp.committor(gen, A, B, start=0.1, rtol=1e-7)
    assert abs(float(fine) - exact) < 2e-7 * exact and len(fine.history) > 1
    assert fine.at([-0.9, 0.9]) == pytest.approx([0, 1], abs=1e-14)
    left = fp.Generator(fp.SDE(0.0, 0.5), gen.domain, ["left"], degree=2, scheme="galerkin")
    tau = fp.mean_exit_time(
        left, start=0.0
    )  # a committor of the same domain before leaves it alone: τ'' = −2, τ'(1) = 0
    assert float(tau) == pytest.approx(3.0, rel=1e-12) and tau.error[0] < 1e-10
    passage = fp.first_passage(gen, {"a": A, "b": B})
    assert np.isfinite(passage.solutions["b"].error_at(0.1)).all()


def test_probabilities_of_regions():
    """From x in (−0.6, 0.6) to the right region before the left wall, for Brownian motion."""
    domain = fp.Domain.interval(-1, 1, 10)
    gen = fp.Generator(fp.SDE(0.0, 0.5), domain, ["left"], degree=2, scheme="galerkin")
    for to in (lambda x: x[0] > 0.6, (0.8, 0.2 + 1e-9), [lambda x: x[0] > 0.6]):
        assert fp.exit_probability(gen, to).at(0.2)[0] == pytest.approx(1.2 / 1.6, rel=1e-12)
    with pytest.raises(TypeError, match=r"names of absorbing parts .* were expected"):
        fp.exit_probability(gen, 3)


def test_what_is_exported():
    listed = set(re.findall(r"\w+", fp.__doc__))
    assert all(hasattr(fp, name) for name in fp.__all__)
    assert {name for name in fp.__all__ if name[0].islower()} - {"make_nonnegative", "set_log_level"} <= listed
    for synonym in (
        "mean first-passage time",
        "splitting probability",
        "Kramers",
        "Yaglom",
        "transition path",
        "escape",
    ):
        assert synonym in fp.__doc__
    assert issubclass(fp.SGD, fp.Process) and issubclass(fp.PerSample, fp.Noise)
    with pytest.raises(TypeError, match="abstract"):
        fp.Process()


def test_the_package_ships_its_types():
    assert (Path(fp.__file__).parent / "py.typed").exists()
