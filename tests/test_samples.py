"""Losses written with PyTorch and JAX against the same losses written with UFL and numpy."""

import sys

import numpy as np
import pytest
import ufl

import fpsolver as fp
from fpsolver.models._tabulate import tabulate_samples
from fpsolver.models.fields import Space

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


def by_hand(x, a=A, y=Y):
    """Losses (n, N) and gradients (n, N, d) of the neurons."""
    t = np.tanh(x @ a.T)
    f = (t - y) ** 2 / 2 + 0.05 * np.sum(x**2, axis=1, keepdims=True)
    return f, ((t - y) * (1 - t**2))[..., None] * a + 0.1 * x[:, None]


@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_losses_gradients_and_covariance_are_those_of_the_formula(kind):
    samples = neurons(kind).samples
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
@pytest.mark.parametrize("N", [4, 40])  # few: the rectangular factor; many: the symmetric root
def test_the_error_of_tabulation_is_measured_and_lowered_to_the_tolerance(N):
    """Against loss and Σ evaluated at random points."""
    rng = np.random.default_rng(7)
    a, y = rng.normal(size=(N, 2)), rng.normal(size=N)
    domain, x = fp.Domain.rectangle((-1.5, -1.5), (1.5, 1.5), (6, 6)), rng.uniform(-1.4, 1.4, (300, 2))
    f, g = by_hand(x, a, y)
    centred = g - g.mean(axis=1, keepdims=True)
    exact = f.mean(axis=1), np.einsum("nka,nkb->nab", centred, centred) / N
    degrees = []
    for tol in (3e-2, 1e-3, 3e-5):
        space = Space(domain.mesh, 1, 2)
        tabulate_samples(space, neurons("torch", data=(a, y), rtol=tol).samples)
        (table,) = space.tables.values()
        rows, columns = table.factor.function_space.value_shape
        assert (rows, columns) == (2, N if N == 4 else 2)
        parts = [fp.Solution(table.factor.sub(k).collapse(), {}, "σ").at(x) for k in range(rows * columns)]
        factor = np.stack(parts, axis=-1).reshape(-1, rows, columns)
        found = fp.Solution(table.loss, {}, "loss").at(x), factor @ factor.transpose(0, 2, 1)
        error = max(np.abs(u - v).max() / np.abs(v).max() for u, v in zip(found, exact, strict=True))
        assert table.error <= tol and table.error / 3 < error < 3 * table.error
        degrees.append(table.degree)
    assert degrees[0] < degrees[1] < degrees[2]


@pytest.mark.parallel
def test_error_bars_are_those_of_the_symbolic_losses_and_evaluate_no_sample(monkeypatch):
    domain, sides = fp.Domain.rectangle((-1, -1), (1, 1), (4, 4)), ["left", "right", "bottom", "top"]
    bars = []
    for noise in (fp.PerSample(UFL), neurons("torch", rtol=1e-4)):
        gen = fp.Generator(fp.SGD(None, noise, 1.0), domain, sides, degree=2)
        with monkeypatch.context() as patch:
            patch.setattr("fpsolver.models.samples.Samples.losses_and_gradients", None)
            tau = fp.mean_exit_time(gen, start=[(0.0, 0.0), (-0.5, 0.5)])
        bars.append(tau.error)
    (table,) = gen.weak.space.tables.values()
    assert tau.stats["tabulation_error"] == table.error <= 1e-4
    assert np.allclose(bars[1], bars[0], rtol=2e-3)


@pytest.mark.parallel
def test_a_tolerance_that_cannot_be_met_is_refused():
    noise = neurons("torch", data=(20 * A, Y), rtol=1e-6)
    with pytest.raises(ValueError, match=r"cannot be tabulated on this mesh to rtol = 1e-06.*Refine the mesh"):
        fp.Generator(fp.SGD(None, noise, 0.3), fp.Domain.rectangle((-2, -2), (2, 2), (2, 2)))


def test_covariance_of_two_samples_stays_semidefinite():
    """Rank one for two samples, also between the nodes."""
    noise = neurons("torch", data=(A[:2], Y[:2]))
    gen = fp.Generator(fp.SGD(None, noise, 0.3), fp.Domain.rectangle((-2, -2), (2, 2), (8, 8)))
    (table,) = gen.weak.space.tables.values()
    x = random.uniform(-2, 2, (500, 2))
    from fpsolver.discretisation.solution import locate

    index, cells = locate(gen.domain.mesh, x)
    points = np.column_stack([x[index], np.zeros(len(index))])
    factor = table.factor.eval(points, cells).reshape(-1, 2, 2)
    eigenvalues = np.linalg.eigvalsh(factor @ factor.transpose(0, 2, 1))
    assert np.abs(eigenvalues[:, 0]).max() < 1e-14 * eigenvalues[:, 1].max()


def test_covariance_of_many_samples_stays_semidefinite():
    """Forty samples on a line: Σ has rank one, which the interpolated root may lose, but not the sign."""
    line = np.outer(np.linspace(-1, 2, 40), (1.0, 0.5))
    gen = fp.Generator(
        fp.SGD(None, neurons("torch", data=(line, np.sin(line[:, 0]))), 0.3),
        fp.Domain.rectangle((-1, -1), (1, 1), (4, 4)),
        degree=2,
    )
    (table,) = gen.weak.space.tables.values()
    x = random.uniform(-1, 1, (200, 2))
    found = [fp.Solution(table.factor.sub(k).collapse(), {}, "σ").at(x) for k in range(4)]
    S = np.stack(found, axis=-1).reshape(-1, 2, 2)
    eigenvalues = np.linalg.eigvalsh(S @ S.transpose(0, 2, 1))
    assert eigenvalues.min() > -1e-15 and eigenvalues[:, 0].max() < 1e-12 * eigenvalues[:, 1].max()


@pytest.mark.parametrize("kind", ["torch", "jax"])
@pytest.mark.parametrize("numbers", [1, 7, 40])
def test_one_point_with_some_of_its_samples_at_a_time(kind, numbers, monkeypatch):
    """Where one point with all its samples is too much for the memory that is meant to be used."""
    monkeypatch.setattr("fpsolver.models.samples._NUMBERS", numbers)
    x, index = random.normal(size=(5, 2)), random.integers(0, 4, (5, 3))
    samples, (f, g) = neurons(kind).samples, by_hand(x)
    found = samples.losses_and_gradients(x)
    assert np.allclose(found[0], f, rtol=1e-13) and np.allclose(found[1], g, rtol=1e-12, atol=1e-14)
    found = samples.losses_and_gradients(x, index)
    assert np.allclose(found[0], np.take_along_axis(f, index, 1), rtol=1e-13)


@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_evaluations_are_as_large_as_the_model_allows(kind):
    """500 hidden units and 6 samples: 3000 numbers for a point, so that 2²¹ allow 512 points at a time."""
    U, (a, y) = random.normal(size=(500, 2)), (random.normal(size=(6, 2)), random.normal(size=6))
    if kind == "torch":
        torch = pytest.importorskip("torch")
        V = torch.as_tensor(U)
        noise = fp.PerSample.from_torch(lambda w, a, y: (torch.tanh(V @ (a * w)).mean() - y) ** 2, (a, y))
    else:
        jnp = pytest.importorskip("jax.numpy")
        noise = fp.PerSample.from_jax(lambda w, a, y: (jnp.tanh(U @ (a * w)).mean() - y) ** 2, (a, y))
    x = np.zeros((1500, 2))
    pieces = list(noise.samples._pieces(x, None, 6))
    assert {columns for _, columns in pieces} == {slice(0, 6)}
    at_a_time = pieces[0][0].stop
    assert 2**20 // 6000 < at_a_time <= 512


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
        (lambda w, a, y: w.float() @ a.float(), "float32; float64 was expected"),
        (lambda w, a, y: 1.0 * (w @ a > y), "float32; float64 was expected.*argmax"),
        (lambda w, a, y: None, "the loss of one sample is a NoneType"),
        (lambda w, a, y: y, "do not depend on x"),
        (lambda w: w @ w, r"samples of float64 \(2,\), float64 \(\): TypeError"),
        (lambda w, a, y: (w @ a > 0) * y + w @ w, "cannot be tabulated.*jump"),
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
        (lambda w, a, y: (w @ a).astype("float32"), "float32; float64 was expected"),
        (lambda w, a, y: (w.astype("float32") @ a - y) ** 2, "does not belong to its gradient.*double precision"),
        (lambda w, a, y: 1.0, "the loss of one sample is a float"),
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
    with pytest.raises(ValueError, match=r"in data is \[3, 4\]"):
        fp.PerSample.from_torch(f, (A, Y[:3]))
    with pytest.raises(ValueError, match=r"in data is \[1\].*at least two"):
        fp.PerSample.from_torch(f, A[:1])
    with pytest.raises(ValueError, match="rtol is 2"):
        fp.PerSample.from_torch(f, A, rtol=2)
    with pytest.raises(ValueError, match="rtol is 'a'"):
        fp.PerSample.from_torch(f, A, rtol="a")
    with pytest.raises(TypeError, match="the loss is a int"):
        fp.PerSample.from_torch(3, A)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (None, "NoneType"),
        ({"a": A}, "dict"),
        (3.0, "float"),
        ([1.0, 2.0], "float"),
        ((A, np.array(3.0)), r"ndarray of shape \(\)"),
        ((A, np.array(["a"] * 4)), "<U1"),
        ((A, A + 1j), "complex128"),
    ],
)
def test_data_that_is_no_array_of_numbers(data, what):
    for make, module in ((fp.PerSample.from_torch, "torch"), (fp.PerSample.from_jax, "jax")):
        pytest.importorskip(module)
        with pytest.raises(TypeError, match=f"data has a .*{what}.*a tuple of arrays of real numbers was expected"):
            make(lambda w, a: w @ a, data)


@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_data_in_single_precision_are_converted(kind):
    x, data = random.normal(size=(3, 2)), (A.astype(np.float32), Y.astype(np.float32))
    f, _ = neurons(kind, data=data).samples.losses_and_gradients(x)
    assert np.allclose(f, by_hand(x, *(d.astype(float) for d in data))[0], rtol=1e-13)


@pytest.mark.parallel
def test_samples_must_be_the_same_on_every_rank():
    domain = fp.Domain.rectangle((-2, -2), (2, 2), (4, 4))
    if domain.comm.size == 1:
        pytest.skip("needs several ranks")
    with pytest.raises(ValueError, match=r"the losses differ between ranks.*comm\.bcast"):
        fp.Generator(fp.SGD(None, neurons("torch", data=(A, Y + domain.comm.rank)), 0.3), domain)
    with pytest.raises(ValueError, match="number of samples differs between ranks"):
        grads = fp.batched(lambda x: np.stack([x, *[-x] * (1 + domain.comm.rank)], axis=1))
        fp.Generator(fp.SGD(lambda x: x[0] ** 2, fp.PerSample(grads), 0.3), domain)
    with pytest.raises(ValueError, match="KeyError: 'mine'"):
        fp.Generator(fp.SGD(None, fails_on_the_last_rank(domain.comm), 0.3), domain)


def fails_on_the_last_rank(comm):
    def loss(w, a, y):
        if comm.rank == comm.size - 1:
            raise KeyError("mine")
        return (a @ w - y) ** 2

    pytest.importorskip("torch")
    return fp.PerSample.from_torch(loss, (A, Y))


def tabulated(loss, noise=None, **options):
    noise = fp.Isotropic(1.0) if noise is None else noise
    return fp.Generator(fp.SGD(loss, noise, 0.3, **options), fp.Domain.rectangle((-1, -1), (1, 1), (2, 2)), degree=2)


@pytest.mark.parallel
def test_unsuitable_functions_of_arrays():
    square, three = fp.batched(lambda x: x[:, 0] ** 2), fp.PerSample(fp.batched(lambda x: np.stack([x, -x, 2 * x], 1)))
    with pytest.raises(TypeError, match=r"batched: a function of an .* was expected, not a int"):
        fp.batched(3)
    with pytest.raises(ValueError, match="returned ndarray of complex128; real numbers"):
        tabulated(fp.batched(lambda x: (x[:, 0] + 1j) ** 2))
    with pytest.raises(ValueError, match="returned NoneType"):
        tabulated(fp.batched(lambda x: None))
    with pytest.raises(ValueError, match=r"is not symmetric: entries differ by up to 0\.5"):
        tabulated(square, fp.Covariance(fp.batched(lambda x: np.tile([[1.0, 0.5], [0.0, 1.0]], (len(x), 1, 1)))))
    for noise in (three, fp.PerSample(three.samples, replacement=False)):
        with pytest.raises(ValueError, match="batch_size is 5, but grads returned only 3 samples"):
            tabulated(square, noise, batch_size=5)


def test_functions_of_pytorch_and_jax_on_arrays(caplog):
    """A tensor that records its history is as good as any other; single precision is warned about."""
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    exact = tabulated(fp.batched(lambda x: np.sin(x).sum(axis=1)))
    recorded = tabulated(fp.batched(lambda x: torch.sin(torch.tensor(x, requires_grad=True)).sum(dim=1)))
    assert (exact.G - recorded.G).norm() < 1e-14 * exact.G.norm()
    assert "float32" not in caplog.text
    single = tabulated(fp.batched(lambda x: jnp.sin(x).sum(axis=1)))
    assert "SGD: loss returned float32" in caplog.text
    assert 0 < (exact.G - single.G).norm() < 1e-4 * exact.G.norm()


@pytest.mark.parametrize(("make", "module"), [("from_torch", "torch"), ("from_jax", "jax")])
def test_a_missing_library_is_named(monkeypatch, make, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{make} needs .*{module}.*Install it"):
        getattr(fp.PerSample, make)(lambda w, a: w @ a, A)
