"""Losses written with PyTorch and JAX against the same losses written with UFL and numpy."""

import sys

import numpy as np
import pytest
import ufl

import fpsolver as fp

random = np.random.default_rng(0)
A, Y = random.normal(size=(4, 2)), random.normal(size=4)
UFL = [
    lambda w, a=a, y=y: (ufl.tanh(a[0] * w[0] + a[1] * w[1]) - y) ** 2 / 2 + 0.05 * (w[0] ** 2 + w[1] ** 2)
    for a, y in zip(A, Y, strict=True)
]


def neurons(kind, data=(A, Y), **options):
    if kind == "torch":
        torch = pytest.importorskip("torch")
        return fp.PerSample.from_torch(lambda w, a, y: (torch.tanh(a @ w) - y) ** 2 / 2 + 0.05 * w @ w, data, **options)
    np_ = pytest.importorskip("jax.numpy")
    return fp.PerSample.from_jax(lambda w, a, y: (np_.tanh(a @ w) - y) ** 2 / 2 + 0.05 * w @ w, data, **options)


def by_hand(x):
    """Losses (n, N) and gradients (n, N, d) of the neurons."""
    t = np.tanh(x @ A.T)
    f = (t - Y) ** 2 / 2 + 0.05 * np.sum(x**2, axis=1, keepdims=True)
    return f, ((t - Y) * (1 - t**2))[..., None] * A + 0.1 * x[:, None]


@pytest.mark.parametrize("kind", ["torch", "jax"])
@pytest.mark.parametrize("chunk", [None, 1, 9])
def test_losses_gradients_and_covariance_are_those_of_the_formula(kind, chunk):
    samples = neurons(kind, chunk=chunk).samples
    x = random.normal(size=(7, 2))
    f, g = by_hand(x)
    found = samples.losses_and_gradients(x)
    assert np.allclose(found[0], f, rtol=1e-13) and np.allclose(found[1], g, rtol=1e-12, atol=1e-14)
    mean, gradient, covariance = samples.moments(x)
    centred = g - g.mean(axis=1, keepdims=True)
    assert np.allclose(mean, f.mean(axis=1), rtol=1e-13) and np.allclose(gradient, g.mean(axis=1), atol=1e-14)
    assert np.allclose(covariance, np.einsum("nka,nkb->nab", centred, centred) / 4, atol=1e-14)


@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_mini_batches_pick_their_samples(kind):
    x, index = random.normal(size=(5, 2)), random.integers(0, 4, (5, 3))
    f, g = by_hand(x)
    found = neurons(kind).samples.losses_and_gradients(x, index)
    assert np.allclose(found[0], np.take_along_axis(f, index, 1), rtol=1e-13)
    assert np.allclose(found[1], np.take_along_axis(g, index[..., None], 1), atol=1e-14)


@pytest.mark.parallel
@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_exit_times_are_those_of_the_symbolic_losses(kind):
    domain, sides = fp.Domain.rectangle((-1, -1), (1, 1), (6, 6)), ["left", "right", "bottom", "top"]
    points = [(0.0, 0.0), (-0.5, 0.5)]
    symbolic, tabulated = (
        fp.mean_exit_time(fp.Generator(fp.SGD(None, noise, 1.0), domain, sides)).at(points)
        for noise in (fp.PerSample(UFL), neurons(kind))
    )
    assert np.allclose(tabulated, symbolic, rtol=1e-6)


@pytest.mark.parallel
@pytest.mark.parametrize("kind", ["torch", "jax"])
@pytest.mark.parametrize("method", ["sde", "sgd"])
def test_paths_are_those_of_the_symbolic_losses(kind, method):
    """The same random numbers move the same paths, to rounding; some leave, so that numbers of paths change."""
    domain, times = fp.Domain.rectangle((-1, -1), (1, 1), (4, 4)), [0.5, 2.0]
    options = {"absorbing": "right", "paths": 37, "times": times, "horizon": 2.0, "method": method, "seed": 4}
    symbolic, differentiated = (
        fp.simulate(fp.SGD(None, noise, 0.25, batch_size=2), domain, (0.5, -0.5), **options)
        for noise in (fp.PerSample(UFL), neurons(kind))
    )
    assert np.allclose(differentiated.positions, symbolic.positions, rtol=0, atol=1e-12, equal_nan=True)
    assert np.allclose(differentiated.exit_times, symbolic.exit_times, rtol=1e-10, equal_nan=True)
    assert np.nanstd(symbolic.positions[-1], axis=0).min() > 0.01


def test_jax_compiles_for_few_numbers_of_points():
    """Paths leave one by one: were every number of them compiled, compiling would take most of the time."""
    jax = pytest.importorskip("jax")
    traces = []

    def loss(w, a, y):
        traces.append(w.shape)
        return (jax.numpy.tanh(a @ w) - y) ** 2 / 2

    samples = fp.PerSample.from_jax(loss, (A, Y)).samples
    for n in range(1, 65):
        x, index = random.normal(size=(n, 2)), random.integers(0, 4, (n, 3))
        assert samples.losses_and_gradients(x, index)[1].shape == (n, 3, 2)
    assert len(traces) <= 2 * 7  # losses and their derivatives, at 1, 2, 4, ..., 64 points


@pytest.mark.parallel
def test_the_error_of_tabulation_is_measured_and_lowered_to_the_tolerance():
    noise, domain = neurons("torch", tol=5e-4), fp.Domain.rectangle((-2, -2), (2, 2), (6, 6))
    gen = fp.Generator(fp.SGD(None, noise, 0.3), domain, degree=2)
    (table,) = gen.space.tables.values()
    assert table.degree > 3 and table.error <= 5e-4
    assert gen.stats()["tabulation_error"] == table.error
    x = random.uniform(-1.9, 1.9, (50, 2)) if domain.comm.rank == 0 else None
    x = domain.comm.bcast(x, root=0)
    f = by_hand(x)[0].mean(axis=1)
    found = fp.Solution(table.loss, {}, "loss").at(x)
    assert np.abs(found - f).max() < 10 * 5e-4 * np.abs(f).max()


@pytest.mark.parallel
def test_a_tolerance_that_cannot_be_met_is_refused():
    noise = neurons("torch", data=(20 * A, Y), tol=1e-6)
    with pytest.raises(ValueError, match=r"cannot be tabulated on this mesh to tol = 1e-06.*Refine the mesh"):
        fp.Generator(fp.SGD(None, noise, 0.3), fp.Domain.rectangle((-2, -2), (2, 2), (2, 2)))


def test_covariance_of_two_samples_stays_semidefinite():
    """Rank one for two samples; the interpolant may lose the rank, never the sign."""
    noise = neurons("torch", data=(A[:2], Y[:2]))
    gen = fp.Generator(fp.SGD(None, noise, 0.3), fp.Domain.rectangle((-2, -2), (2, 2), (8, 8)))
    (table,) = gen.space.tables.values()
    x = random.uniform(-2, 2, (500, 2))
    from fpsolver.discretisation.solution import locate

    index, cells = locate(gen.domain.mesh, x)
    points = np.column_stack([x[index], np.zeros(len(index))])
    S = table.root.eval(points, cells).reshape(-1, 2, 2)
    eigenvalues = np.linalg.eigvalsh(S @ S)
    assert eigenvalues.min() > -1e-15
    assert eigenvalues[:, 0].max() < 1e-3 * eigenvalues[:, 1].max()


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda w, a, y: a * w - y, "the loss of one sample has shape"),
        (lambda w, a, y: (w @ a) * float("nan"), "not finite at"),
        (lambda w, a, y: (w[0] + 1.2) ** 0.5 * (w @ a), r"not finite at \(-(2\.0|1\.[2-9])"),
        (lambda w, a, y: (w.detach() @ a - y) ** 2, "gradient is zero everywhere.*detach"),
        (lambda w, a, y: (w.detach() @ w - y) ** 2, "does not belong to its gradient.*detach"),
        (lambda w, a, y: ((10 * w).round() @ a - y) ** 2, "gradient is zero everywhere"),
        (lambda w, a, y: w.item(), "failed on points of shape.*RuntimeError"),
    ],
)
def test_unsuitable_losses(loss, match):
    pytest.importorskip("torch")
    noise = fp.PerSample.from_torch(loss, (A, Y))
    with pytest.raises(ValueError, match=match):
        fp.Generator(fp.SGD(None, noise, 0.3), fp.Domain.rectangle((-2, -2), (2, 2), (4, 4)))


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda w, a, y: a * w - y, "the loss of one sample has shape"),
        (lambda w, a, y: (w[0] + 1.2) ** 0.5 * (w @ a), r"not finite at \(-(2\.0|1\.[2-9])"),
        (lambda w, a, y: ((10 * w).round() @ a - y) ** 2, "gradient is zero everywhere"),
        (lambda w, a, y: float(w[0]) * a, "failed on points of shape.*ConcretizationTypeError"),
    ],
)
def test_unsuitable_losses_in_jax(loss, match):
    pytest.importorskip("jax")
    noise = fp.PerSample.from_jax(loss, (A, Y))
    with pytest.raises(ValueError, match=match):
        fp.Generator(fp.SGD(None, noise, 0.3), fp.Domain.rectangle((-2, -2), (2, 2), (4, 4)))


def test_batches_and_learning_rates_that_do_not_fit():
    noise = neurons("torch")
    with pytest.raises(ValueError, match="batch_size is 5, but there are only 4 samples"):
        fp.SGD(None, noise, 0.3, batch_size=5)
    with pytest.raises(ValueError, match=r"learning_rate is -0\.3"):
        fp.SGD(None, noise, -0.3)


def test_unsuitable_data():
    pytest.importorskip("torch")
    f = lambda w, a: w @ a  # noqa: E731
    with pytest.raises(ValueError, match=r"data has \[3, 4\] samples"):
        fp.PerSample.from_torch(f, (A, Y[:3]))
    with pytest.raises(ValueError, match=r"data has \[1\] samples.*at least two"):
        fp.PerSample.from_torch(f, A[:1])
    with pytest.raises(ValueError, match="chunk is 0"):
        fp.PerSample.from_torch(f, A, chunk=0)
    with pytest.raises(ValueError, match="tol is 2"):
        fp.PerSample.from_torch(f, A, tol=2)


@pytest.mark.parametrize(("make", "module"), [("from_torch", "torch"), ("from_jax", "jax")])
def test_a_missing_library_is_named(monkeypatch, make, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{make} needs .*: install .*{module}"):
        getattr(fp.PerSample, make)(lambda w, a: w @ a, A)
