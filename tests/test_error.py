"""Error bars against true errors, on problems of different kinds; the table is printed (pytest -s)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
from dolfinx import fem
from tools import BOX, box, narrow_escape, random_acceleration

import fpsolver as fp
from fpsolver.discretisation.assembly import to_vector
from fpsolver.discretisation.others import remaining
from fpsolver.discretisation.solver import basis_integrals


@dataclass(frozen=True)
class Case:
    """A question with a known answer at one start."""

    ask: Callable[..., Any]
    generator: Callable[[], fp.Generator]
    start: Any
    exact: float


def _brownian(dim, degree, domain, absorbing, **more):
    return fp.Generator(fp.SDE((0.0,) * dim, 0.5), domain, absorbing, degree=degree, **more)


def _well(eps, n, degree, scheme):
    process = fp.Langevin(lambda x: (x[0] ** 2 - 1) ** 2 / 4, eps)
    return fp.Generator(process, fp.Domain.interval(-2.5, 0, n), ["right"], degree=degree, scheme=scheme)


def _rotation():
    """Noise along the circles around the origin only: D = ½ z zᵀ, z = (−y, x); the outer circle takes data."""
    diffusion = lambda x: ((x[1] ** 2 / 2, -x[0] * x[1] / 2), (-x[0] * x[1] / 2, x[0] ** 2 / 2))  # noqa: E731
    return fp.Generator(fp.SDE((0.0, 0.0), diffusion), fp.Domain.annulus((0, 0), 1, 2, 0.4), ["outer"], degree=2)


def _layer():
    """Drift 1 and D = 0.01 on (0, 1): the probability of leaving to the right has a layer at 0."""
    return fp.Generator(fp.SDE(1.0, 0.01), fp.Domain.interval(0, 1, 20), ["left", "right"], degree=3)


def _second_moment(gen, **more):
    return fp.exit_time_moments(gen, 2, **more)[1]


def _to_the_right(gen, **more):
    return fp.exit_probability(gen, to="right", **more)


def _transform(gen, **more):
    return fp.feynman_kac(gen, exit=1.0, killing=1.0, **more)


CASES = {
    "square": Case(
        fp.mean_exit_time, lambda: _brownian(2, 3, box(2, 3), BOX[2]), (0.1, 0.2), reference.square_exit_time(0.1, 0.2)
    ),
    "double well": Case(
        fp.mean_exit_time, lambda: _well(0.05, 10, 3, "galerkin"), -1.0, reference.double_well_exit_time(0.05, 0.0)
    ),
    "weighted, 1e44": Case(fp.mean_exit_time, lambda: _well(0.0025, 60, 3, "weighted"), -1.0, 5.9941596002097e43),
    "rank one": Case(fp.mean_exit_time, _rotation, (1.2, 0.3), 2 * np.log(2 / np.hypot(1.2, 0.3))),
    "kinetic": Case(
        fp.mean_exit_time,
        lambda: random_acceleration((8, 20)),
        (0.25, 0),
        reference.random_acceleration_exit_time(0.25, 0),
    ),
    "ends of a gate": Case(
        fp.mean_exit_time, lambda: narrow_escape(0.5), (0, 0), float(reference.narrow_escape_time(0.0, 0.5))
    ),
    "layer": Case(_to_the_right, _layer, 0.05, (1 - np.exp(-5)) / (1 - np.exp(-100))),
    "cube": Case(fp.mean_exit_time, lambda: _brownian(3, 2, box(3, 2), BOX[3]), (0, 0, 0), reference.cube_exit_time()),
    "exit side": Case(
        _to_the_right,
        lambda: _brownian(2, 2, fp.Domain.rectangle((0, 0), (1, 1), (3, 3)), BOX[2]),
        (0.25, 0.25),
        reference.exit_side_probability(0.25, 0.25),
    ),
    "second moment": Case(
        _second_moment,
        lambda: _brownian(1, 2, fp.Domain.interval(-1, 1, 5), ["left", "right"]),
        0.1,
        5 / 3 - 2 * 0.1**2 + 0.1**4 / 3,
    ),
    "killing": Case(
        _transform,
        lambda: _brownian(1, 3, fp.Domain.interval(-1, 1, 3), ["left", "right"]),
        0.0,
        1 / np.cosh(np.sqrt(2)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_error_bars_are_between_half_and_twice_the_error(name):
    case = CASES[name]
    gen = case.generator()
    answer = case.ask(gen, start=case.start)
    assert answer.error.shape == (1,)
    error = abs(answer.at(case.start)[0] - case.exact)
    effectivity = answer.error[0] / error
    print(
        f"\n{name:16s}{gen.scheme:10s}k={gen.degree}{gen.G.getSize()[0]:7d} unknowns   relative error "
        f"{error / abs(case.exact):.1e}   bar / error {effectivity:.2f}"
    )
    assert error > 1e-10 * abs(case.exact)  # rounding is no test
    assert 0.5 <= effectivity <= 2


@pytest.mark.parallel
def test_sweeps_share_the_forms_of_their_error_bars(monkeypatch):
    """Also when the generator that compiled them is closed."""
    domain = fp.Domain.interval(-1.6, -0.4, 6)
    first = fp.Generator(fp.Langevin(fp.landscapes.double_well, 0.1), domain, ["left", "right"], scheme="galerkin")
    fp.mean_exit_time(first, start=-1.0)
    for n, temperature in enumerate((0.05, 0.2)):
        gen = first.replace(temperature=temperature)
        if n:
            first.close()
        with monkeypatch.context() as patch:
            patch.setattr(fem.forms, "compile_form", None)
            patch.setattr(fem, "compile_form", None)
            shared = fp.mean_exit_time(gen, start=-1.0).error
        fresh = fp.Generator(
            fp.Langevin(fp.landscapes.double_well, temperature), domain, first.absorbing, scheme="galerkin"
        )
        assert shared == pytest.approx(fp.mean_exit_time(fresh, start=-1.0).error, rel=1e-4)


def test_power_laws_are_extrapolated():
    """J_k = 1 + k^−2: what remains is known; fast and non-monotone sequences are left alone."""
    for k in (2, 3, 4):
        J = np.array([[1 + (k + i) ** -2.0] for i in (-1, 0, 1, 2)])
        before, step, beyond = np.diff(J, axis=0)
        assert remaining(k, step, k - 1, before, step) == pytest.approx(k**-2.0, rel=1e-3)
        assert remaining(k, step, k, step, beyond) == pytest.approx(k**-2.0, rel=1e-3)
        assert remaining(k, step, k - 1, before, -step) == pytest.approx(abs(step), rel=1e-3)
        assert remaining(k, step, k - 1, before, 1e-8 * step) == pytest.approx(abs(step), rel=1e-3)


@pytest.mark.parallel
def test_error_bars_of_several_points_densities_and_the_mean():
    """On the interval, T = 1 − x²: degree one has an error that is known everywhere."""
    gen = _brownian(1, 1, fp.Domain.interval(-1, 1, 8), ["left", "right"])
    tau = fp.mean_exit_time(gen)
    assert tau.error.shape == (1,)
    # nodal values are exact up to the weak boundary condition, so that the rest is interpolation
    mean = float(basis_integrals(gen).dot(to_vector(gen, tau.function))) / 2
    assert 0.5 <= tau.error[0] / abs(mean - 2 / 3) <= 2
    points = np.array([[-0.55], [0.1], [0.3]])
    true = np.abs(tau.at(points) - (1 - points[:, 0] ** 2))
    for bars in (tau.error_at(points), fp.mean_exit_time(gen, start=points).error):
        assert np.all((bars >= 0.5 * true) & (bars <= 2 * true))
    start = fp.gaussian(0.2, 0.1)
    spread = fp.mean_exit_time(gen, start=start)
    exact = 1 - 0.2**2 - 0.1**2
    assert 0.5 <= spread.error[0] / abs(spread.estimate.value()[0] - exact) <= 2


@pytest.mark.parallel
def test_indicators_add_up_to_the_error():
    """With signs lost their sum is larger than the error, but by a bounded factor; none is negative."""
    gen = _brownian(2, 2, box(2, 4), BOX[2])
    tau = fp.mean_exit_time(gen, start=(0.3, 0.4))
    shares = tau.estimate.indicators()
    assert shares.shape == (gen.domain.mesh.topology.index_map(2).size_local,)
    total = gen.domain.comm.allreduce(float(shares.sum()))
    assert shares.min(initial=0.0) >= 0
    assert 0.5 * tau.error[0] <= total <= 20 * tau.error[0]


def test_symmetry_does_not_hide_the_error():
    """In the middle of a symmetric cell the next, odd degree changes nothing: the one after it does."""
    gen = _brownian(1, 2, fp.Domain.interval(-1, 1, 5), ["left", "right"])
    answer = fp.exit_time_moments(gen, 2, start=0.0)[1]
    assert 0.5 <= answer.error[0] / abs(answer.at(0.0)[0] - 5 / 3) <= 2


def test_answers_without_error_bars_say_so():
    density = fp.ergodic_laws(_brownian(1, 2, fp.Domain.interval(-1, 1, 4), [])).laws[0]
    assert density.error is None
    with pytest.raises(ValueError, match="no error estimate exists"):
        density.error_at(0.0)


@pytest.mark.parallel
def test_starts_outside_the_domain_are_refused():
    gen = _brownian(1, 2, fp.Domain.interval(-1, 1, 4), ["left", "right"])
    with pytest.raises(ValueError, match=r"start.*lies outside the mesh"):
        fp.mean_exit_time(gen, start=1.5)
    with pytest.raises(ValueError, match="lies outside the mesh"):
        fp.mean_exit_time(gen).error_at(-3.0)
    with pytest.raises(ValueError, match=r"start: shape \(2,\)|start: shape"):
        fp.mean_exit_time(gen, start=np.zeros((2, 3)))
