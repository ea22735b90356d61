"""Random processes on random domains: what holds for every one of them, and error bars against two degrees more."""

from petsc4py import PETSc

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import fpsolver as fp
from fpsolver.discretisation.assembly import to_vector
from fpsolver.discretisation.solver import basis_integrals

fuzz = settings(
    derandomize=True, deadline=None, max_examples=8, database=None, suppress_health_check=[HealthCheck.too_slow]
)
number = st.floats(-1.0, 1.0, allow_subnormal=False).map(lambda a: round(a, 3))
positive = st.floats(0.05, 1.0).map(lambda a: round(a, 3))

LINE = ["left", "right"]
SIDES = ["left", "right", "bottom", "top"]


@st.composite
def on_a_line(draw):
    """Cubic drift; D constant, or growing, or vanishing inside."""
    numbers = {k: draw(number) for k in "abc"} | {"m": draw(positive), "q": draw(st.sampled_from([0.0, 0.5, 1.0]))}
    process = fp.SDE(
        lambda x, a, b, c: a + b * x[0] - (1 + c) * x[0] ** 3,
        lambda x, m, q: m * (1 - q + x[0] ** 2),
        parameters=numbers,
    )
    low, high = draw(st.floats(-2.0, -0.5)), draw(st.floats(0.5, 2.0))
    return process, fp.Domain.interval(low, high, draw(st.integers(6, 30))), LINE


@st.composite
def in_the_plane(draw):
    """Rotation and a cubic; D full, or of rank one in a direction that turns, or of rank one and constant."""
    numbers = {k: draw(number) for k in "abc"} | {"m": draw(positive), "q": draw(st.sampled_from([0.0, 1.0]))}
    turning = draw(st.booleans())

    def diffusion(x, m, q):
        u, v = (x[1], x[0]) if turning else (1.0, 0.5)
        return ((m * (q + u * u), m * u * v), (m * u * v, m * (q + v * v)))

    process = fp.SDE(lambda x, a, b, c: (a * x[1] - x[0] ** 3 + b, c - a * x[0] - x[1]), diffusion, parameters=numbers)
    cells = (draw(st.integers(3, 8)), draw(st.integers(3, 8)))
    return process, fp.Domain.rectangle((-1.2, -1.0), (1.0, draw(st.floats(0.6, 1.5))), cells), SIDES


def _generator(problem, data, degrees=(1, 4)):
    process, domain, sides = problem
    absorbing = data.draw(st.lists(st.sampled_from(sides), min_size=1, unique=True), label="absorbing")
    return fp.Generator(process, domain, absorbing, degree=data.draw(st.integers(*degrees), label="degree"))


def _or_refused(question):
    """The answer; examples that are refused, with a reason, are not counted."""
    try:
        return question()
    except (ValueError, fp.NotConverged) as refusal:
        assert len(str(refusal)) > 40, "a refusal must say why"
        assume(False)


kinds = pytest.mark.parametrize("kind", [on_a_line(), in_the_plane()], ids=["line", "plane"])


@kinds
def test_mass_and_constants(kind):
    @fuzz
    @given(kind, st.integers(1, 4))
    def holds(problem, degree):
        process, domain, _ = problem
        with fp.Generator(process, domain, degree=degree) as gen:
            one, out = gen.G.createVecs()
            one.set(1.0)
            gen.G.multTranspose(one, out)
            assert out.norm(PETSc.NormType.INFINITY) < 1e-11 * gen.G.norm(PETSc.NormType.INFINITY)

    holds()


@kinds
def test_duality_signs_and_probabilities(kind):
    @fuzz
    @given(kind, st.data())
    def holds(problem, data):
        gen = _or_refused(lambda: _generator(problem, data))
        with gen:
            tau = _or_refused(lambda: fp.mean_exit_time(gen))
            start = fp.gaussian([0.0] * gen.domain.dim, 0.3)
            law = _or_refused(lambda: fp.exit_distribution(gen, start))
            assert sum(law.probability.values()) == pytest.approx(1, abs=1e-6)
            assert min(law.probability.values()) > -0.1
            occupation = to_vector(gen, law._forward)
            assert basis_integrals(gen).dot(occupation) == pytest.approx(law.mean_time, rel=1e-9)
            highest = tau.function.x.array.max()
            assert tau.function.x.array.min() > -0.5 * highest
            q = _or_refused(lambda: [fp.exit_probability(gen, part).function.x.array for part in gen.absorbing])
            assert abs(sum(q) - 1).max() < 1e-6 * max(1, np.abs(q).max())

    holds()


@kinds
def test_error_bars_against_two_degrees_more(kind):
    """At least half of the difference, unless the answer warns that nothing is resolved."""

    @fuzz
    @given(kind, st.data())
    def holds(problem, data):
        gen = _or_refused(lambda: _generator(problem, data, degrees=(2, 4)))
        point = np.zeros(gen.domain.dim)
        with gen:
            tau = _or_refused(lambda: fp.mean_exit_time(gen, start=point))
            better = _or_refused(lambda: fp.mean_exit_time(gen.with_degree(gen.degree + 2), start=point))
            value, bar = float(tau.at(point)[0]), float(tau.error[0])
            assume(bar < 0.1 * abs(value))  # beyond that the answer says so itself
            off = abs(value - float(better.at(point)[0]))
            assert off <= 2 * bar + float(better.error[0]) + 1e-9 * abs(value), f"{tau} {better}"

    holds()
