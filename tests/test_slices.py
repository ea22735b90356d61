"""Networks on the space of all their weights, and slices of it."""

import sys

import numpy as np
import pytest

import fpsolver as fp
from fpsolver.discretisation.solver import statistics

random = np.random.default_rng(1)
X = random.normal(size=(40, 3))
Y = np.sin(X.sum(axis=1))
W = [random.normal(size=shape) / 2 for shape in ((5, 3), (5,), (1, 5), (1,))]


def torch_network():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    for p, w in zip(model.parameters(), W, strict=True):
        p.data = torch.as_tensor(w.copy()).float().double()
    return fp.Network.from_torch(model, lambda out, y: (out[:, 0] - y) ** 2 / 2, (X, Y))


def jax_network():
    jnp = pytest.importorskip("jax.numpy")
    params = [w.astype(np.float32) for w in W]
    apply = lambda p, x: jnp.tanh(x @ p[0].T + p[1]) @ p[2].T + p[3]  # noqa: E731
    return fp.Network.from_jax(apply, params, lambda out, y: (out[:, 0] - y) ** 2 / 2, (X, Y))


def losses_by_hand(w):
    a, b, c, d = w[:15].reshape(5, 3), w[15:20], w[20:25], w[25]
    return (np.tanh(X @ a.T + b) @ c + d - Y) ** 2 / 2


@pytest.fixture(params=[torch_network, jax_network])
def network(request):
    return request.param()


def jacobian(w, h=1e-6):
    return np.array([(losses_by_hand(w + h * e) - losses_by_hand(w - h * e)) / (2 * h) for e in np.eye(len(w))]).T


def test_network_differentiates_its_losses(network):
    w = network.weights
    assert w.dtype == float and w.shape == (26,) and network.size == 40
    assert np.allclose(network.losses(w), losses_by_hand(w), rtol=1e-12)
    J, v, c = jacobian(w), random.normal(size=26), random.normal(size=40)
    assert np.allclose(network.jvp(w, v), J @ v, atol=1e-7)
    assert np.allclose(network.vjp(w, c), J.T @ c, atol=1e-7)
    assert np.allclose(network.gradient(w), J.mean(axis=0), atol=1e-8)
    h = 1e-5
    difference = (network.gradient(w + h * v) - network.gradient(w - h * v)) / (2 * h)
    assert np.allclose(network.hvp(w, v), difference, atol=1e-7)
    centred = J - J.mean(axis=0)
    assert np.allclose(network.noise(w, v), centred.T @ (centred @ v) / 40, atol=1e-7)
    assert network.noise_trace(w) == pytest.approx(np.sum(centred**2) / 40, rel=1e-6)
    assert np.allclose(network.batch_gradient(w, np.array([3, 3, 7])), J[[3, 3, 7]].mean(axis=0), atol=1e-7)
    assert np.allclose(network.sample_gradients(w, np.array([3, 3, 7])), J[[3, 3, 7]], atol=1e-7)


def test_trace_of_the_noise_in_several_pieces(network, monkeypatch):
    whole = network.noise_trace(network.weights)
    monkeypatch.setattr("fpsolver.models.network._NUMBERS", 26 * 12)  # 12, 12, 12 and 4 samples
    assert network.noise_trace(network.weights) == pytest.approx(whole, rel=1e-13)


def test_training_is_reproducible_and_lowers_the_loss(network):
    path = network.sgd(0.1, 200, batch_size=4, seed=3, every=50)
    assert path.shape == (5, 26)
    assert np.array_equal(path, network.sgd(0.1, 200, batch_size=4, seed=3, every=50))
    assert network.losses(path[-1]).mean() < 0.5 * network.losses(path[0]).mean()


def test_slices_are_orthonormal_and_project(network):
    path = network.sgd(0.1, 60, batch_size=4, every=10)
    slices = [
        fp.Slice.random(network, 3, seed=1),
        fp.Slice.principal(path, 2),
        fp.Slice.through([path[0], path[3], path[-1]]),
        fp.Slice.curvature(network, 2),
        fp.Slice.noisiest(network, 2),
    ]
    for s in slices:
        assert np.allclose(s.directions.T @ s.directions, np.eye(s.dim), atol=1e-12)
        x = random.normal(size=(4, s.dim))
        assert np.allclose(s.coordinates(s.weights(x)), x)
        assert s.distance(s.weights(x)).max() < 1e-12
    assert slices[2].distance(path[[0, 3, -1]]).max() < 1e-12
    assert slices[1].distance(path).max() < slices[0].distance(path).max()


def test_leading_directions_are_those_of_the_full_matrices(network):
    w, J = network.weights, jacobian(network.weights)
    H = np.array([network.hvp(w, e) for e in np.eye(26)])
    centred = J - J.mean(axis=0)
    for s, matrix in ((fp.Slice.curvature(network), H), (fp.Slice.noisiest(network), centred.T @ centred / 40)):
        values, vectors = np.linalg.eigh(matrix)
        top = vectors[:, np.argsort(-np.abs(values))[:2]]
        overlap = np.linalg.svd(top.T @ s.directions)[1]
        assert overlap.min() > 1 - 1e-6


def test_random_directions_have_the_norms_of_the_filters():
    network = torch_network()
    s = fp.Slice.random(network, 1)
    filters, direction = network.weights[:15].reshape(5, 3), s.directions[:15, 0].reshape(5, 3)
    ratio = np.linalg.norm(direction, axis=1) / np.linalg.norm(filters, axis=1)
    assert np.allclose(ratio, ratio[0])
    assert not s.directions[15:20].any()  # biases


def test_what_a_slice_leaves_out(network):
    s = fp.Slice.noisiest(network, 2)
    report = s.left_out(network, np.zeros((1, 2)))
    J = jacobian(network.weights)
    centred = J - J.mean(axis=0)
    inside = np.sum((centred @ s.directions) ** 2) / np.sum(centred**2)
    gradient = J.mean(axis=0)
    outside = 1 - np.sum((gradient @ s.directions) ** 2) / (gradient @ gradient)
    assert report.noise[0] == pytest.approx(1 - inside, abs=1e-6)
    assert report.drift[0] == pytest.approx(outside, abs=1e-6)
    assert "noise outside" in str(report)


@pytest.mark.parallel
def test_process_in_a_slice_is_that_of_the_projected_gradients(network):
    s = fp.Slice.noisiest(network, 2)
    noise = s.noise(network)
    x = random.normal(size=(3, 2)) / 2
    mean, gradient, covariance = noise.samples.moments(x)
    for i, w in enumerate(s.weights(x)):
        J = jacobian(w) @ s.directions
        centred = J - J.mean(axis=0)
        assert mean[i] == pytest.approx(losses_by_hand(w).mean(), rel=1e-9)
        assert np.allclose(gradient[i], J.mean(axis=0), atol=1e-7)
        assert np.allclose(covariance[i], centred.T @ centred / 40, atol=1e-7)
    domain = fp.Domain.rectangle((-0.5, -0.5), (0.5, 0.5), (4, 4))
    gen = fp.Generator(fp.SGD(None, noise, 0.5, batch_size=2), domain, ["left", "right", "bottom", "top"], degree=3)
    assert 0 < fp.mean_exit_time(gen).at((0.0, 0.0))[0] < 100


@pytest.mark.parallel
def test_exit_time_in_a_slice_is_that_of_paths_and_of_the_algorithm():
    """From a network to its exit time; SGD is seen after whole steps only, so that it stays longer."""
    network = torch_network()
    comm = fp.Domain.interval(0, 1, 4).comm
    origin = comm.bcast(network.sgd(0.1, 300, batch_size=8, seed=1)[-1], root=0)
    s = comm.bcast(fp.Slice.noisiest(network, 1, origin), root=0)
    v, center = s.directions[:, 0], 0.0
    for _ in range(8):
        w = s.weights([[center]])[0]
        h, variance = v @ network.hvp(w, v), v @ network.noise(w, v)
        center -= float(v @ network.gradient(w) / h)
    eta, batch = 0.02 / h, 16
    process = fp.SGD(None, s.noise(network), eta, batch_size=batch)
    half, parts = 1.5 * np.sqrt(eta * variance / batch / (2 * h)), ["left", "right"]

    def steps(domain):
        gen = fp.Generator(process, domain, parts)
        tau = fp.mean_exit_time(gen, start=(center,))
        assert statistics(gen)["tabulation_error"] < 1e-3 and tau.error < 1e-3 * tau.at((center,))[0]
        return float(tau.at((center,))[0]) / eta

    domain = fp.Domain.interval(center - half, center + half, 8)
    pde, options = steps(domain), {"absorbing": parts, "paths": 1000}
    sde = fp.simulate(process, domain, (center,), step=eta, seed=1, **options).mean_exit_time()
    sgd = fp.simulate(process, domain, (center,), method="sgd", seed=2, **options).mean_exit_time()
    assert sde.scaled(1 / eta).covers(pde)
    assert sgd.low / eta > pde


def test_bad_slices():
    network = torch_network()
    w = network.weights
    with pytest.raises(ValueError, match=r"direction\(s\) are not independent"):
        fp.Slice.through([w, w + 1.0, w + 2.0])
    with pytest.raises(ValueError, match="two, three or four"):
        fp.Slice.through([w])
    with pytest.raises(ValueError, match="dim is 4"):
        fp.Slice.random(network, 4)
    with pytest.raises(ValueError, match=r"spans 1 direction\(s\); 2 were asked for"):
        fp.Slice.principal(np.array([w, w + 1, w + 2]), 2)
    with pytest.raises(ValueError, match=r"\(26,\); \(T, P\) with T >= 2 was expected"):
        fp.Slice.principal(w)
    with pytest.raises(ValueError, match="batch_size is 41; an integer between 1 and 40"):
        network.sgd(0.1, 1, batch_size=41)
    with pytest.raises(ValueError, match="learning_rate is -1"):
        network.sgd(-1, 1)
    with pytest.raises(ValueError, match="sgd diverges"):
        network.sgd(1e4, 50)


def test_slices_that_do_not_fit():
    network = torch_network()
    w, V = network.weights, np.eye(26)
    with pytest.raises(ValueError, match=r"origin and directions is \(\(26,\), \(26, 4\)\); \(P,\) and \(P, d\)"):
        fp.Slice(w, V[:, :4], "")
    with pytest.raises(ValueError, match=r"the directions are not orthonormal \(VᵀV differs from I by 3\)"):
        fp.Slice(w, 2 * V[:, :1], "")
    with pytest.raises(ValueError, match="not orthonormal"):
        fp.Slice(w, V[:, [0, 0]], "")
    with pytest.raises(ValueError, match="not finite"):
        fp.Slice(w, V[:, :2] * np.nan, "")
    with pytest.raises(ValueError, match=r"shapes is \[\(26,\), \(5,\)\]; .* expected"):
        fp.Slice.through([w, w[:5]])
    with pytest.raises(ValueError, match="trajectory is not finite"):
        fp.Slice.principal(np.full((3, 5), np.nan))
    s = fp.Slice(w, V[:, :2], "")
    with pytest.raises(ValueError, match=r"shape is \(1, 3\); \(n, 2\) was expected"):
        s.left_out(network, [(0.0, 0.0, 0.0)])
    with pytest.raises(ValueError, match=r"functions of 2 coordinate\(s\), the points have 1"):
        fp.Generator(fp.SGD(None, s.noise(network), 0.1), fp.Domain.interval(-1, 1, 4))
    with pytest.raises(ValueError, match=r"origin: the weights' shape is \(5,\); \(26,\) was expected"):
        fp.Slice(w[:5], V[:5, :2], "").noise(network)
    for make in (fp.Slice.noisiest, fp.Slice.curvature, fp.Slice.random):
        with pytest.raises(ValueError, match=f"{make.__name__}: the weights' shape is"):
            make(network, 1, origin=w[:5])
        with pytest.raises(ValueError, match=f"{make.__name__}: the weights are not finite"):
            make(network, 1, origin=w * np.nan)


def linear(inputs, **options):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return fp.Network.from_torch(torch.nn.Linear(3, 1, bias=False), lambda out: out[:, 0] ** 2 / 2, inputs, **options)


def test_directions_that_matter_are_as_many_as_the_rank():
    """Inputs along one line: every gradient is a multiple of it."""
    line = np.outer(np.linspace(1, 2, 9), (1.0, 2.0, -2.0))
    network = linear(line)
    (v,) = fp.Slice.noisiest(network, 1).directions.T
    assert np.abs(v) == pytest.approx(np.array([1, 2, 2]) / 3)
    for make, matrix in ((fp.Slice.noisiest, "covariance"), (fp.Slice.curvature, "Hessian")):
        with pytest.raises(ValueError, match=rf"the {matrix} has rank 1 at this point; 2 direction\(s\)"):
            make(network, 2)
    with pytest.raises(ValueError, match="the covariance has rank 0"):
        fp.Slice.noisiest(network, 1, origin=np.zeros(3))
    all_of_it = fp.Slice.noisiest(linear(X), 3)
    assert all_of_it.dim == 3 and all_of_it.left_out(linear(X), np.zeros(3)).noise[0] < 1e-12


def test_points_on_a_line_are_numbers():
    s = fp.Slice(np.zeros(2), np.array([[0.6], [0.8]]), "")
    assert np.allclose(s.weights([0.0, 1.0, 5.0]), [(0, 0), (0.6, 0.8), (3, 4)])
    assert s.weights(5.0).shape == (1, 2)


def test_training_that_cannot_be():
    network = torch_network()
    for name, value in (("steps", 1.5), ("steps", -1), ("every", 0)):
        with pytest.raises(ValueError, match=f"{name} is {value}; an integer of at least"):
            network.sgd(0.1, **{"steps": 3, name: value})
    with pytest.raises(ValueError, match="learning_rate is nan"):
        network.sgd(np.nan, 1)
    with pytest.raises(ValueError, match=r"batch_size is 1\.5"):
        network.sgd(0.1, 1, batch_size=1.5)
    with pytest.raises(ValueError, match=r"sgd: the weights' shape is \(3,\)"):
        network.sgd(0.1, 1, start=np.zeros(3))
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"not finite after \d+ steps"):
        linear(X).sgd(1e9, 60, every=100)


def models():
    """Models and losses that cannot be used, and what is said."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn, F = torch.nn, torch.nn.functional

    class Hidden(nn.Module):
        def __init__(self, f):
            super().__init__()
            self.layer, self.f = nn.Linear(3, 1), f

        def forward(self, x):
            return self.f(self.layer(x))

    square = lambda out, y: (out[:, 0] - y) ** 2  # noqa: E731
    yield Hidden(lambda z: F.dropout(z, 0.5)), square, X, ValueError, "the losses are random.*drop-out"
    normalised = nn.BatchNorm1d(1, track_running_stats=False)
    yield Hidden(normalised.train()), square, X, ValueError, "depend on the others of their batch"
    yield Hidden(torch.detach), square, X, ValueError, "do not change with the weights.*detach"
    yield Hidden(lambda z: z * z.detach()), square, X, ValueError, "do not belong to their derivatives"
    yield Hidden(lambda z: z.float()), square, X, ValueError, "do not belong to their derivatives.*double precision"
    yield Hidden(torch.log), square, X, ValueError, r"losses of \d+ of the 40 samples are not finite"
    yield Hidden(torch.tanh), lambda out, y: F.mse_loss(out[:, 0], y), X, ValueError, r"shape \(\); expected \(40,\)"
    yield Hidden(torch.tanh), lambda out, y: (out - y) ** 2, X, ValueError, r"shape \(40, 40\); expected \(40,\)"
    yield Hidden(torch.tanh), lambda out, y: 1.0 * (out[:, 0] > y), X, ValueError, "float32; float64 was expected"
    yield Hidden(torch.tanh), square, X[:, :2], ValueError, r"fail on 40 samples of float64 \(2,\), float64 \(\): Runt"
    yield nn.Flatten(), square, X, TypeError, "has no weights: none of its 0 parameter arrays"
    yield Hidden(torch.tanh).requires_grad_(False), square, X, TypeError, "none of its 2 parameter arrays requires"
    yield None, square, X, TypeError, r"the model is a NoneType; a torch\.nn\.Module was expected"


def test_unsuitable_models():
    for model, loss, inputs, error, match in models():
        with pytest.raises(error, match=match):
            fp.Network.from_torch(model, loss, (inputs, Y))


def test_unsuitable_models_in_jax():
    jnp = pytest.importorskip("jax.numpy")
    square, apply = lambda out, y: (out - y) ** 2, lambda p, x: jnp.tanh(x @ p["w"])
    with pytest.raises(TypeError, match="has no weights"):
        fp.Network.from_jax(apply, {}, square, (X, Y))
    params = {"w": np.array([0.5, -0.2, 0.1])}
    for f, loss, match in (
        (apply, lambda out, y: ((out - y) ** 2).mean(), r"has shape \(\); expected \(40,\)"),
        (lambda p, x: 1.0 * (x @ p["w"] > 0), square, "do not change with the weights"),
        (lambda p, x: apply(p, x).astype("float32"), square, "do not belong to their derivatives"),
        (lambda p, x: jnp.log(x @ p["w"]), square, "are not finite"),
        (lambda p, x: apply(p, x - x.mean(axis=0)), square, "depend on the others of their batch"),
    ):
        with pytest.raises(ValueError, match=match):
            fp.Network.from_jax(f, params, loss, (X, Y))


def test_training_mode_frozen_weights_and_labels_of_any_integer_type():
    """A copy of the model is taken in evaluation mode; weights that need no gradient stay as they are."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    entropy = lambda out, y: nn.functional.cross_entropy(out, y, reduction="none")  # noqa: E731
    networks = [fp.Network.from_torch(model, entropy, (X, (Y > 0).astype(t))) for t in (np.uint8, np.int64)]
    assert model.training and networks[0].weights.shape == (4 + 4 + 8 + 2,)
    w = networks[0].weights
    z = X @ model[0].weight.detach().double().numpy().T + model[0].bias.detach().double().numpy()
    z = np.maximum(z / np.sqrt(1 + 1e-5), 0)  # running mean 0 and variance 1
    out = z @ w[8:16].reshape(2, 4).T + w[16:]
    exact = np.log(np.exp(out).sum(axis=1)) - out[np.arange(40), (Y > 0).astype(int)]
    for network in networks:
        assert np.allclose(network.losses(w), exact, rtol=1e-9)
    noise = fp.Slice.noisiest(networks[0], 1).noise(networks[0], rtol=1e-2)  # kinks
    gen = fp.Generator(fp.SGD(None, noise, 0.1), fp.Domain.interval(-0.1, 0.1, 16), degree=2)
    assert statistics(gen)["tabulation_error"] < 1e-2


@pytest.mark.parametrize(("make", "module"), [("from_torch", "torch"), ("from_jax", "jax")])
def test_a_missing_library_is_named(monkeypatch, make, module):
    monkeypatch.setitem(sys.modules, module, None)
    arguments = (None, None, (X, Y)) if make == "from_torch" else (None, [], None, (X, Y))
    with pytest.raises(ImportError, match=f"{make} needs .*{module}.*Install it"):
        getattr(fp.Network, make)(*arguments)


def test_a_large_network_with_many_samples():
    """1e5 weights and 2000 samples: the noisiest direction, what it leaves out, and its table, against formulas."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(200, 500), torch.nn.Tanh(), torch.nn.Linear(500, 1))
    rng = np.random.default_rng(4)
    inputs = rng.normal(size=(2000, 200)) * np.linspace(3, 0.1, 200)
    labels = np.sin(inputs[:, 0])
    network = fp.Network.from_torch(model, lambda out, y: (out[:, 0] - y) ** 2 / 2, (inputs, labels))
    assert len(network.weights) == 101_001 and network.size == 2000
    s = fp.Slice.noisiest(network, 1)
    report = s.left_out(network, np.zeros((1, 1)))

    # by hand: the gradient of sample i is r_i times that of its output, whose layers' products are those of the layers
    a, b, c, d = (p.detach().double().numpy() for p in model.parameters())
    hidden = np.tanh(inputs @ a.T + b)
    residual = (hidden @ c.T)[:, 0] + d - labels
    slope = (1 - hidden**2) * c
    squares = residual**2 * ((slope**2).sum(axis=1) * ((inputs**2).sum(axis=1) + 1) + (hidden**2).sum(axis=1) + 1)
    weighted = residual[:, None] * slope
    mean = [weighted.T @ inputs, weighted.sum(axis=0), residual @ hidden, residual.sum()]
    drift = sum(np.sum(m**2) for m in mean) / 2000**2
    trace = squares.mean() - drift
    assert network.noise_trace(network.weights) == pytest.approx(trace, rel=1e-10)
    v = s.directions[:, 0]
    V, u, w, z = v[:100_000].reshape(500, 200), v[100_000:100_500], v[100_500:101_000], v[-1]
    along = residual * (np.einsum("nh,nh->n", slope, inputs @ V.T + u) + hidden @ w + z)
    assert report.noise[0] == pytest.approx(1 - along.var() / trace, rel=1e-8)
    assert report.drift[0] == pytest.approx(1 - along.mean() ** 2 / drift, rel=1e-8)

    noise = s.noise(network)
    _, gradient, covariance = noise.samples.moments(np.zeros((1, 1)))
    assert gradient[0, 0] == pytest.approx(along.mean(), rel=1e-8)
    assert covariance[0, 0, 0] == pytest.approx(along.var(), rel=1e-8)
    gen = fp.Generator(fp.SGD(None, noise, 0.2, batch_size=4), fp.Domain.interval(-0.5, 0.5, 3), degree=2)
    assert statistics(gen)["tabulation_error"] < 1e-3
