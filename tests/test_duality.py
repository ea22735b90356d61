"""Structure that holds on every mesh, scheme and number of ranks, whatever the coefficients."""

from functools import cache

from petsc4py import PETSc

import numpy as np
import pytest
import ufl
from tools import BOX, box, coefficient_error, interpolated, pairing

import fpsolver as fp
from fpsolver.discretisation.assembly import to_vector
from fpsolver.discretisation.solver import basis_integrals, exit_flux, exit_solver

pytestmark = pytest.mark.parallel

CELLS = {1: 8, 2: 3, 3: 2}


def _regular(dim):
    """Non-constant, uniformly positive D and a drift that crosses the walls."""
    if dim == 1:
        return fp.SDE(lambda x: 1 - x[0] ** 3, lambda x: 0.3 + 0.2 * x[0] ** 2)
    if dim == 2:
        D = lambda x: ((0.4 + 0.3 * x[1] ** 2, 0.1 * x[0] * x[1]), (0.1 * x[0] * x[1], 0.3 + 0.2 * x[0] ** 2))  # noqa: E731
        return fp.SDE(lambda x: (x[1] - x[0], -x[0] * x[1]), D)
    return fp.SDE(lambda x: (x[1], -x[0], x[0] * x[1]), lambda x: _along(x) + 0.3 * ufl.Identity(3))


def _along(x):
    z = ufl.as_vector([-x[1], x[0], 1])
    return 0.5 * ufl.outer(z, z)


def _degenerate(dim):
    """D of rank one (zero at a point in one dimension) in Itô form."""
    if dim == 1:
        return fp.SDE(lambda x: 0.7 - x[0], lambda x: x[0] ** 2 / 2)
    if dim == 2:
        return fp.SDE(
            lambda x: (0.3 * x[1], -0.5 * x[0]),
            lambda x: ((x[1] ** 2 / 2, -x[0] * x[1] / 2), (-x[0] * x[1] / 2, x[0] ** 2 / 2)),
        )
    return fp.SDE(lambda x: (x[1], -x[0], 0.2), _along)


CASES = [
    pytest.param(dim, scheme, kind, id=f"{dim}d-{scheme}-{kind.__name__[1:]}")
    for dim in (1, 2, 3)
    for scheme, kind in (("galerkin", _regular), ("dg", _regular), ("dg", _degenerate))
]
structure = pytest.mark.parametrize(("dim", "scheme", "kind"), CASES)


@cache
def _domain(dim):
    return box(dim, CELLS[dim])


@cache
def _generator(dim, scheme, kind, absorbing=()):
    return fp.Generator(kind(dim), _domain(dim), absorbing, degree=3 if dim == 1 else 2, scheme=scheme)


def _start(gen):
    """A smooth density that touches no wall in particular."""
    p = interpolated(gen, lambda x: np.exp(-(np.sum((x - 0.2) ** 2, axis=0)) / 0.5))
    p.x.array[:] /= pairing(gen, interpolated(gen, lambda x: 1.0), p)
    return p


def _size(matrix):
    return matrix.norm(PETSc.NormType.INFINITY)


@structure
def test_no_mass_is_lost_when_nothing_absorbs(dim, scheme, kind):
    gen = _generator(dim, scheme, kind)
    ones, column_sums = gen.M.createVecLeft(), gen.M.createVecRight()
    ones.set(1.0)
    gen.G.multTranspose(ones, column_sums)
    assert column_sums.norm(PETSc.NormType.INFINITY) < 1e-13 * _size(gen.G)


@structure
def test_integrals_are_those_of_the_domain(dim, scheme, kind):
    gen = _generator(dim, scheme, kind)
    assert basis_integrals(gen).sum() == pytest.approx(2.0**dim, rel=1e-13)
    assert gen.M.isSymmetric(1e-14)


@structure
def test_exit_fluxes_are_all_that_is_lost(dim, scheme, kind):
    gen = _generator(dim, scheme, kind, ("left", "right"))
    ones, total = gen.M.createVecLeft(), gen.M.createVecRight()
    ones.set(1.0)
    gen.G.multTranspose(ones, total)
    lost = total.norm(PETSc.NormType.INFINITY)
    for part in gen.absorbing:
        total.axpy(1.0, exit_flux(gen, part))
    assert lost > 1e-3 * _size(gen.G)
    assert total.norm(PETSc.NormType.INFINITY) < 1e-13 * _size(gen.G)


@structure
def test_exit_through_all_parts_has_probability_one(dim, scheme, kind):
    gen = _generator(dim, scheme, kind, ("left", "right"))
    sure = fp.feynman_kac(gen, exit=1.0)
    assert coefficient_error(gen, sure.function, lambda x: 1.0) < 1e-10
    left, right = (fp.exit_probability(gen, to=[part]).function.x.array for part in gen.absorbing)
    np.testing.assert_allclose(left + right, 1.0, rtol=0, atol=1e-10)


@structure
def test_mean_exit_time_is_the_integral_of_the_surviving_mass(dim, scheme, kind):
    """⟨m, ∫₀^∞ p dt⟩ = ⟨τ, M p₀⟩ with ∫₀^∞ p dt = −G⁻¹ M p₀."""
    gen = _generator(dim, scheme, kind, ("left", "right"))
    p0, green, rhs = _start(gen), gen.M.createVecRight(), gen.M.createVecLeft()
    gen.M.mult(to_vector(gen, p0), rhs)
    rhs.scale(-1.0)
    exit_solver(gen, "Green measure").solve(rhs, green)
    forward = basis_integrals(gen).dot(green)
    assert forward > 0
    assert pairing(gen, fp.mean_exit_time(gen).function, p0) == pytest.approx(forward, rel=1e-10)
    # each part's share of the flux is the probability to leave through it
    for part in gen.absorbing:
        share = exit_flux(gen, part).dot(green)
        assert pairing(gen, fp.exit_probability(gen, to=[part]).function, p0) == pytest.approx(share, rel=1e-10)


@structure
def test_two_time_duality(dim, scheme, kind):
    """⟨u(T), p₀⟩ = ⟨payoff, p(T)⟩ for the backward and the forward evolution."""
    gen = _generator(dim, scheme, kind, ("left",))
    p0, payoff = _start(gen), interpolated(gen, lambda x: 1 + x[0] ** 2)
    forward = fp.evolve(gen, p0, [0.3], time_rtol=1e-11)[-1].raw
    dual = fp.backward(gen, payoff, [0.3], time_rtol=1e-11)[-1].function
    assert pairing(gen, dual, p0) == pytest.approx(pairing(gen, payoff, forward), rel=1e-10)


@structure
def test_evolution_keeps_the_mass(dim, scheme, kind):
    gen = _generator(dim, scheme, kind)
    evolution = fp.evolve(gen, _start(gen), [0.1, 1.0])
    assert evolution.mass == pytest.approx([1.0, 1.0], abs=1e-10)


@structure
def test_constants_do_not_change_backwards(dim, scheme, kind):
    gen = _generator(dim, scheme, kind)
    u = fp.backward(gen, 2.5, [0.1, 1.0])[-1]
    assert coefficient_error(gen, u.function, lambda x: 2.5) < 1e-10


@structure
def test_what_left_and_what_stayed_are_one(dim, scheme, kind):
    gen = _generator(dim, scheme, kind, ("left", "right"))
    evolution = fp.evolve(gen, _start(gen), [0.05, 0.2, 1.0], time_rtol=1e-8)
    out = np.asarray(evolution.outflux)
    assert evolution.mass[-1] < 0.98
    assert (np.diff(out) > 0).all()
    np.testing.assert_allclose(evolution.mass + out, 1.0, rtol=0, atol=1e-8)


def test_all_reflecting_and_all_absorbing_differ_only_at_the_boundary():
    """Parts are named one by one or together: G depends on their union only."""
    together = _generator(2, "dg", _regular, tuple(BOX[2]))
    domain = box(2, CELLS[2])
    domain.mark("everything", lambda x: x[0] > -2)
    named = fp.Generator(_regular(2), domain, ["everything"], degree=2, scheme="dg")
    assert named.G.norm() == pytest.approx(together.G.norm(), rel=1e-14)
    assert len(named.absorbing) == 1
