"""Generators own what they use: other generators, error bars and the end of a with block change nothing of theirs."""

import gc

import numpy as np
import pytest
from dolfinx import fem
from tools import check

import fpsolver as fp
from fpsolver import diagnostics as dg


def square():
    """τ = (1 − y)(3 + y)/2 … from y = 0.3: 1.155, exactly representable from degree two on."""
    domain = fp.Domain.rectangle((-1, -1), (1, 1), (4, 4))
    return fp.Generator(fp.SDE((0, 0), 1.0), domain, absorbing=["top"], degree=2)


def line(absorbing=("left",), **more):
    return fp.Generator(fp.SDE(0.0, 1.0), fp.Domain.interval(0, 1, 10), absorbing=absorbing, **more)


START = (0.2, 0.3)


@pytest.mark.parallel
def test_a_committor_leaves_the_error_bars_of_its_generator_alone():
    gen = square()
    assert 0 < fp.committor(gen, "left", "right").error_at(START)[0] < 1e-2
    tau = fp.mean_exit_time(gen, start=START)
    check(tau.at(START), [1.155], 1e-12)
    assert tau.error[0] < 1e-11
    # and the other way round
    other = square()
    assert fp.mean_exit_time(other, start=START).error[0] < 1e-11
    assert fp.committor(other, "left", "right").error_at(START) == pytest.approx(
        fp.committor(gen, "left", "right").error_at(START), rel=1e-6
    )


@pytest.mark.parallel
@pytest.mark.parametrize("scheme", ["galerkin", "dg", "weighted"])
def test_forms_of_a_generator_keep_its_numbers(scheme):
    """Also those that a user makes of its coefficients after another generator was made from it."""

    def integral(gen):
        form = fem.form(gen.coefficients.D[0, 0] * gen.weak.dx)
        return gen.domain.comm.allreduce(fem.assemble_scalar(form)) / 2

    first = fp.Generator(fp.Langevin(lambda x: x[0] ** 2, 0.5), fp.Domain.interval(-1, 1, 8), ["right"], scheme=scheme)
    before = fp.mean_exit_time(first).at([0.0])
    with first.replace(temperature=0.125) as other, first.with_degree(3) as third, other.with_degree(3) as fourth:
        found = [integral(gen) for gen in (first, other, third, fourth)]
        check(found, [0.5, 0.125, 0.5, 0.125], 1e-14)
        fresh = fp.Generator(other.process, first.domain, ["right"], degree=3, scheme=scheme)
        check(fp.mean_exit_time(fourth).at([0.0]), fp.mean_exit_time(fresh).at([0.0]), 1e-9)
        check(fp.mean_exit_time(third).at([0.0]), before, 1e-2)
    check(fp.mean_exit_time(first).at([0.0]), before, 1e-14)


@pytest.mark.parallel
@pytest.mark.parametrize("scheme", ["galerkin", "dg"])
def test_error_bars_of_regions(scheme):
    """Nearly zero, as q is piecewise linear and τ quadratic; inside the regions and on average too."""
    gen = line((), scheme=scheme)
    q = fp.committor(gen, lambda x: x[0] < 0.21, lambda x: x[0] > 0.79)
    check(q.at([0.1, 0.5, 0.9]), [0.0, 0.5, 1.0], 1e-12)
    assert q.error[0] < 1e-11 and (q.error_at([0.1, 0.5, 0.9]) < 1e-11).all()
    passages = fp.first_passage(gen, {"a": "left", "b": "right", "c": (0.45, 0.06)})
    check(passages.solutions["b"].at([0.0, 0.3]), [0.5, 0.455], 1e-11)
    for tau in passages.solutions.values():
        assert tau.error[0] < 1e-10 and tau.error_at([0.9])[0] < 1e-10


@pytest.mark.parallel
@pytest.mark.parametrize("ask", [fp.mean_exit_time, lambda gen: fp.exit_probability(gen, ["left"])])
def test_answers_of_a_closed_generator_have_error_bars(ask):
    with line() as gen:
        u = ask(gen)
    assert u.error[0] < 1e-11
    assert u.error_at([0.3])[0] < 1e-11


@pytest.mark.parallel
def test_what_needs_a_closed_generators_matrices_says_so():
    with line() as gen:
        pass
    gen.close()  # twice does no harm
    for use in (lambda: gen.G, lambda: gen.M, lambda: fp.mean_exit_time(gen), lambda: fp.spectrum(gen, 2)):
        with pytest.raises(ValueError, match=r"closed.*gen\.replace\(\)"):
            use()
    check(fp.mean_exit_time(gen.replace()).at([1.0]), [0.5], 1e-12)
    assert gen.boundary_report()["left"].diffusive == 1.0


def test_generators_free_themselves():
    """Nothing refers to a generator in a circle, so that its factors go with it."""
    gc.collect()
    gc.disable()
    try:
        for scheme in ("galerkin", "dg", "weighted"):
            gen = fp.Generator(
                fp.Langevin(lambda x: x[0] ** 2, 0.5), fp.Domain.interval(-1, 1, 8), ["right"], scheme=scheme
            )
            fp.mean_exit_time(gen, start=0.0)
            handle = gen.G
            del gen
            assert handle.getRefCount() == 1
    finally:
        gc.enable()


@pytest.mark.parallel
def test_added_noise_keeps_the_loss():
    """With δ = 0 it is the same process."""
    domain = fp.Domain.interval(-2, 2, 20)
    plain = fp.Langevin(fp.landscapes.double_well, 0.1)
    noisy = fp.Noisy(plain, 0.0)
    points = [[c.point for c in dg.critical_points(p, domain)] for p in (plain, noisy)]
    assert np.allclose(*points)
    times = [
        dg.eyring_kramers(p, fp.Domain.interval(-2, 0.5, 20), start=-1.0, absorbing=["right"]).time
        for p in (plain, noisy)
    ]
    assert times[0] == pytest.approx(times[1], rel=1e-12) and np.isfinite(times[0])
    gens = [fp.Generator(p, domain, ["right"]) for p in (plain, noisy)]
    ratios = [dg.regime_indicator(gen).at([0.3]) for gen in gens]
    check(ratios[1], ratios[0], 1e-12)
    bounds = [next(b for b in dg.exit_bounds(gen, -1.0).bounds if b.name == "arrhenius") for gen in gens]
    assert bounds[0].value == pytest.approx(bounds[1].value, rel=1e-9)
