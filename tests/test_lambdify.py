"""Generated code against DOLFINx' evaluation of the same expressions, and against formulas."""

from mpi4py import MPI

import dolfinx
import numpy as np
import pytest
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh

import fpsolver as fp
from fpsolver.models.fields import Space
from fpsolver.pointwise.dynamics import semidefinite_root, triangular_root
from fpsolver.pointwise.family import Compiled, Family, lambdify
from fpsolver.pointwise.lambdify import PointSpace, finite_difference, generate

EXPRESSIONS = {
    "polynomial": lambda x: 3 * x[0] ** 4 - x[0] * x[1] ** 3 + x[1] ** 2 / 7 - 2,
    "powers": lambda x: (2 + x[0] ** 2) ** 1.5 + (1 + x[1] ** 2) ** -0.5 + (1 + x[0] ** 2) ** x[1],
    "elementary": lambda x: (
        ufl.exp(x[0]) * ufl.sin(x[1]) + ufl.cos(x[0] * x[1]) + ufl.tanh(x[0]) - ufl.ln(3 + x[1]) + ufl.sqrt(2 + x[0])
    ),
    "inverse": lambda x: ufl.atan(x[0]) + ufl.asin(x[1] / 3) + ufl.acos(x[0] / 3) + ufl.atan2(x[0] + 3, x[1]),
    "pieces": lambda x: ufl.conditional(ufl.Or(ufl.gt(x[0], 0.3), ufl.lt(x[1], -0.5)), x[0] ** 2, -x[1]) + abs(x[0]),
    "extremes": lambda x: ufl.max_value(x[0], x[1]) * ufl.min_value(x[0] ** 2, 0.4),
    "tensors": lambda x: ufl.inner(ufl.outer(x, x), ufl.as_matrix([[1, x[0]], [x[1], 2]])) + ufl.tr(ufl.outer(x, x)),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_values_and_derivatives_are_those_of_dolfinx(name):
    mesh = dmesh.create_rectangle(MPI.COMM_SELF, [(-0.9, -0.9), (0.9, 0.9)], [3, 3])
    other, here = Space(mesh, 2, 2), PointSpace(2)
    reference = np.array([[0.2, 0.3], [0.6, 0.1]])
    points = fem.Expression(ufl.SpatialCoordinate(mesh), reference).eval(mesh, np.arange(18, dtype=np.int32))
    x = points.reshape(-1, 2).T

    def all_of(space):
        f = space.scalar(EXPRESSIONS[name], "f")
        g = space.grad(f)
        hessian = ufl.as_matrix([[g[i].dx(j) for j in range(2)] for i in range(2)])
        return [f, g, hessian, ufl.div(ufl.outer(space.x, g))]

    found = lambdify(all_of(here), here)(x)
    values = [fem.Expression(e, reference).eval(mesh, np.arange(18, dtype=np.int32)) for e in all_of(other)]
    expected = np.concatenate([np.asarray(v).reshape(x.shape[1], -1) for v in values], axis=1).T
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(lambdify(all_of(here), here, "c")(x), expected, rtol=1e-12, atol=1e-12)


def test_numbers_only_differ_between_members_of_a_family():
    data = np.random.default_rng(1).normal(size=(30, 2))
    space = PointSpace(2)
    losses = [lambda w, a=float(a), y=float(y): (ufl.sin(a * w[0] + w[1]) - y) ** 2 / 2 for a, y in data]
    losses.append(lambda w: ufl.cosh(w[0]))  # of another kind
    family = Family([[f := space.scalar(loss, "f"), space.grad(f)] for loss in losses], space)
    assert len(family.members) == 2
    x = np.random.default_rng(2).normal(size=(2, 50))
    z = data[:, :1] * x[0] + x[1]
    value = np.vstack(((np.sin(z) - data[:, 1:]) ** 2 / 2, np.cosh(x[0])[None]))
    slope = (np.sin(z) - data[:, 1:]) * np.cos(z)
    first = np.vstack((slope * data[:, :1], np.sinh(x[0])[None]))
    everyone = family.everyone(x)
    np.testing.assert_allclose(everyone[0], value, atol=1e-13)
    np.testing.assert_allclose(everyone[1], first, atol=1e-13)
    sample = np.random.default_rng(3).integers(31, size=(4, 50))
    chosen = family.chosen(x, sample)
    assert chosen.shape == (3, 4, 50)
    np.testing.assert_allclose(chosen[1], first[sample, np.arange(50)], atol=1e-13)
    compiled = Compiled([[f := space.scalar(loss, "f"), space.grad(f)] for loss in losses], space)
    np.testing.assert_allclose(compiled.batch(x, sample), chosen.mean(axis=1), atol=1e-13)
    np.testing.assert_allclose(compiled.everyone(x), everyone, atol=1e-13)


def test_compiled_moments_are_those_of_numpy():
    """Means, covariances and second moments; 77 points fill no whole groups."""
    x = np.random.default_rng(1).normal(size=(3, 77))
    for N in (1, 2, 50):
        numbers = np.random.default_rng(N).normal(size=(N, 3))
        space = PointSpace(3)
        losses = [
            ufl.exp(-float(a) * space.x[0]) * float(b) * space.x[1] + float(c) * space.x[0] for a, b, c in numbers
        ]
        rows = [[space.grad(f)] for f in losses]  # the third derivative is zero
        plain, compiled = Family(rows, space), Compiled(rows, space)
        for centred in (True, False):
            (mean, S), (found, L) = plain.scatter(x, centred), compiled.scatter(x, centred)
            np.testing.assert_allclose(found, mean, atol=1e-13)
            exact = np.einsum("ikn,jkn->ijn", S, S)
            np.testing.assert_allclose(np.einsum("ikn,jkn->ijn", L, L), exact, atol=1e-12 * (1 + exact.max()))
            assert L.shape == (3, N, 77) and not L[2].any()


def test_a_compiled_result_does_not_depend_on_the_other_points():
    space = PointSpace(2)
    family = Compiled([[ufl.sin(float(a) * space.x[0]) ** 1.5 * space.x[1]] for a in (0.5, 0.7, 2)], space)
    x, sample = np.random.default_rng(1).random((2, 100)), np.random.default_rng(2).integers(3, size=(2, 100))
    whole, mean, root = family.batch(x, sample), *family.scatter(x)
    for some in (slice(0, 1), slice(31, 33), slice(7, 100)):
        np.testing.assert_array_equal(family.batch(x[:, some], sample[:, some]), whole[:, some])
        np.testing.assert_array_equal(family.scatter(x[:, some])[0], mean[:, some])
        np.testing.assert_array_equal(family.scatter(x[:, some])[1], root[:, :, some])


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    space = PointSpace(2)
    f = space.scalar(fp.batched(lambda x: np.sin(x[:, 0])), "f")
    with pytest.raises(ValueError, match=r"cannot compile functions of fp\.batched"):
        Compiled([[f]], space)
    different = [[space.x[0] ** (k + 5) + ufl.exp(space.x[1]) ** k] for k in range(1100)]
    with pytest.raises(ValueError, match="takes formulas of 3000 lines"):
        Compiled(different, space)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeError, match="no C compiler 'no-such-compiler'"):
        Compiled([[space.x[0] ** 7]], space)


def test_batched_sources_and_their_gradients():
    space = PointSpace(2)
    f = space.scalar(fp.batched(lambda x: np.sin(x[:, 0]) * x[:, 1]), "f")
    x = np.random.default_rng(1).normal(size=(2, 20))
    found = lambdify([f, space.grad(f), f**2], space)(x)
    exact = [np.sin(x[0]) * x[1], np.cos(x[0]) * x[1], np.sin(x[0]), (np.sin(x[0]) * x[1]) ** 2]
    np.testing.assert_allclose(found, exact, atol=2e-12)
    assert abs(finite_difference(lambda p: p[:, 0] ** 4, np.array([[2.0]]))[0, 0] - 32) < 1e-9
    with pytest.raises(ValueError, match="second derivatives"):
        generate([space.grad(f)[0].dx(1)], space)


def test_common_subexpressions_are_computed_once():
    space = PointSpace(1)
    f = space.scalar(lambda x: ufl.exp(x[0]) ** 2 + ufl.exp(x[0]), "f")
    assert generate([f, space.grad(f)], space).source.count("np.exp") == 1


def test_what_has_no_value_at_a_point_is_named():
    space = PointSpace(2)
    with pytest.raises(ValueError, match="UFL node FacetNormal"):
        generate([ufl.FacetNormal(space.mesh)[0]], space)
    V = fem.functionspace(dmesh.create_unit_square(MPI.COMM_SELF, 1, 1), ("Lagrange", 1))
    with pytest.raises(ValueError, match="loss is a dolfinx Function"):
        space.scalar(fem.Function(V), "loss")
    with pytest.raises(ValueError, match="a batched function returned shape"):
        lambdify(space.scalar(fp.batched(lambda x: x), "f"), space)(np.zeros((2, 3)))


def test_roots_of_semidefinite_matrices():
    rng = np.random.default_rng(4)
    for d, K in ((1, 5), (2, 1), (2, 20), (3, 2), (3, 7)):
        columns = rng.normal(size=(d, K, 100)) * 10.0 ** rng.uniform(-12, 3, size=100)
        exact = np.einsum("ikn,jkn->ijn", columns, columns)
        size = np.einsum("iin->n", exact)
        for root in (triangular_root(columns), semidefinite_root(exact)):
            assert root.shape == (d, d, 100)
            assert np.abs((np.einsum("ikn,jkn->ijn", root, root) - exact) / size).max() < 1e-14 * 10
    assert not semidefinite_root(np.zeros((2, 2, 3))).any() and not triangular_root(np.zeros((2, 4, 3))).any()
    with pytest.raises(ValueError, match="not positive semi-definite"):
        semidefinite_root(np.array([[1.0, 2.0], [2.0, 1.0]])[:, :, None])
    assert dolfinx.default_scalar_type is np.float64
