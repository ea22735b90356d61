"""Networks whose layers PyTorch cannot vectorise or differentiate forward: derivatives against differences."""

import numpy as np
import pytest

import fpsolver as fp

torch = pytest.importorskip("torch")
nn = torch.nn
N = 12


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.core, self.out = kind(2, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.core(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.core, self.out = nn.Linear(2, 4), nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        h = self.into(x)
        return self.out(self.core(h, h, h, need_weights=False)[0].mean(1))


class Written(nn.Module):
    """Writes into arrays of its own."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(10, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.into(x.flatten(1))
        both = torch.zeros(len(x), 4, dtype=h.dtype)
        both[:, :2] = h[:, :2]
        both[:, 2:] += h[:, 2:]
        return self.out(both.tanh_())


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.core = nn.EmbeddingBag(10, 2)

    def forward(self, x):
        return self.core(x)


MODELS = {
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
    "attention": Attention,
    "transformer": lambda: nn.Sequential(
        nn.Linear(2, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(20, 2)
    ),
    "written": Written,
}


def network(model, inputs):
    labels = (inputs.flatten(1).double().sum(1) > 0).long()
    return fp.Network.from_torch(model, nn.CrossEntropyLoss(reduction="none"), (inputs, labels))


@pytest.mark.parametrize("name", MODELS)
def test_derivatives_are_those_of_the_losses(name):
    torch.manual_seed(0)
    net = network(MODELS[name](), torch.randn(N, 5, 2))
    w, random, h = net.weights, np.random.default_rng(1), 1e-5
    v = random.standard_normal(len(w))
    slopes = (net.losses(w + h * v) - net.losses(w - h * v)) / (2 * h)
    np.testing.assert_allclose(net.sample_gradients(w, np.arange(N)) @ v, slopes, atol=1e-6)
    np.testing.assert_allclose(net.jvp(w, v), slopes, atol=1e-6)
    curved = (net.gradient(w + h * v) - net.gradient(w - h * v)) / (2 * h)
    np.testing.assert_allclose(net.hvp(w, v), curved, atol=1e-6)
    plane = fp.Slice.random(net, 2)
    x, index = np.array([(0.1, -0.2), (0.3, 0.1)]), np.array([[0, 1], [3, 2]])
    for chosen in (None, index):
        f, g = plane.noise(net).samples.losses_and_gradients(x, chosen)
        all_of_them = np.stack([net.losses(at) for at in plane.weights(x)])
        np.testing.assert_allclose(f, all_of_them if chosen is None else np.take_along_axis(all_of_them, index, 1))
        e = np.array([h, 0.0])
        ends = [plane.noise(net).samples.losses_and_gradients(x + s * e, chosen)[0] for s in (1, -1)]
        np.testing.assert_allclose(g[..., 0], (ends[0] - ends[1]) / (2 * h), atol=1e-6)
    assert 0 <= plane.left_out(net, [(0.0, 0.0)]).noise[0] <= 1


def test_layers_without_second_derivatives_are_named_with_others():
    with pytest.raises(ValueError, match=r"from_torch: model and loss fail.*torch\.nn\.Embedding and a mean"):
        network(Bag(), torch.randint(0, 10, (N, 6)))


def test_branches_of_one_sample():
    """Values decide: PyTorch cannot vectorise it."""
    f = lambda x, a: (x[0] - a) ** 2 if x[0] > 0 else (x[0] - a) ** 2 + x[0] ** 3  # noqa: E731
    samples = fp.PerSample.from_torch(f, np.array([1.0, 2.0, 3.0])).samples
    values, slopes = samples.losses_and_gradients(np.array([[0.5], [-0.5]]))
    a = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(values, [(0.5 - a) ** 2, (-0.5 - a) ** 2 - 0.125])
    np.testing.assert_allclose(slopes[..., 0], [2 * (0.5 - a), 2 * (-0.5 - a) + 0.75])
