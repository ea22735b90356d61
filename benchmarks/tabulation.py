"""Samples per second: loss, gradient and Σ of 1000 samples at 10 000 points, against plain loops.

The samples are noisy values of a sine, the model is a network of one hidden layer with 64 units (193 weights) on a
slice of two dimensions.  The package takes all points and samples in chunks, forward; the plain loop takes one point
and one sample at a time with reverse differentiation, and is measured on a subset.  A loop over points that takes all
samples at once is measured too.  One thread for PyTorch.

    python3 benchmarks/tabulation.py
"""

import time

import numpy as np

import fpsolver as fp

N, POINTS, UNITS = 1000, 10_000, 64
random = np.random.default_rng(0)
X = random.uniform(-3, 3, (N, 1))
Y = np.sin(X[:, 0]) + 0.1 * random.normal(size=N)
PLACES = random.uniform(-1, 1, (POINTS, 2))


def rate(what, pairs, seconds, base=None):
    times = "" if base is None else f" {pairs / seconds / base:8.0f} times the loop"
    print(f"{what:48} {pairs:10d} pairs in {seconds:6.2f} s: {pairs / seconds:12,.0f} samples x points/s{times}")
    return pairs / seconds


def torch_network():
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, UNITS), torch.nn.Tanh(), torch.nn.Linear(UNITS, 1))
    return fp.Network.from_torch(model, lambda out, y: (out[:, 0] - y) ** 2 / 2, (X, Y)), model.double()


def by_loop(model, piece, points=5, samples=100):
    """Pairs, seconds, and the moments at the points: one backward pass for each pair."""
    import torch
    from torch.func import functional_call

    sizes = [p.numel() for p in model.parameters()]
    names = [(name, p.shape) for name, p in model.named_parameters()]
    origin, V = torch.as_tensor(piece.origin), torch.as_tensor(piece.directions)
    x, y = torch.as_tensor(X[:samples]), torch.as_tensor(Y[:samples])
    losses, gradients = np.empty((points, samples)), np.empty((points, samples, 2))
    begin = time.perf_counter()
    for p in range(points):
        for i in range(samples):
            place = torch.tensor(PLACES[p], requires_grad=True)
            split = torch.split(origin + V @ place, sizes)
            params = {name: w.reshape(shape) for (name, shape), w in zip(names, split, strict=True)}
            value = (functional_call(model, params, (x[i : i + 1],))[0, 0] - y[i]) ** 2 / 2
            value.backward()
            losses[p, i], gradients[p, i] = value.item(), place.grad.numpy()
    return points * samples, time.perf_counter() - begin, losses, gradients


def by_points(network, piece, points=50):
    """Pairs and seconds: all samples at once, point after point."""
    begin = time.perf_counter()
    for w in piece.weights(PLACES[:points]):
        network.losses(w)
        g = np.column_stack([network.jvp(w, v) for v in piece.directions.T])
        np.cov(g.T, bias=True)
    return points * N, time.perf_counter() - begin


def vectorised(piece, network):
    samples = piece.noise(network).samples
    samples.moments(PLACES[:10])  # the first call traces and compiles
    begin = time.perf_counter()
    samples.moments(PLACES)
    return POINTS * N, time.perf_counter() - begin, samples


def main():
    network, model = torch_network()
    piece = fp.Slice.random(network, 2)
    pairs, seconds, losses, gradients = by_loop(model, piece)
    loop = rate("loop over points and samples, PyTorch", pairs, seconds)
    rate("loop over points, all samples at once, PyTorch", *by_points(network, piece), loop)
    pairs, seconds, samples = vectorised(piece, network)
    found = samples.losses_and_gradients(PLACES[: len(losses)])
    assert np.allclose(found[0][:, : losses.shape[1]], losses, rtol=1e-10)
    assert np.allclose(found[1][:, : losses.shape[1]], gradients, atol=1e-10)
    rate("fpsolver, from_torch", pairs, seconds, loop)
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        print("JAX is not installed")
        return
    params = [np.asarray(p.detach()) for p in model.parameters()]
    apply = lambda p, x: jnp.tanh(x @ p[0].T + p[1]) @ p[2].T + p[3]  # noqa: E731
    other = fp.Network.from_jax(apply, params, lambda out, y: (out[:, 0] - y) ** 2 / 2, (X, Y))
    pairs, seconds, samples = vectorised(fp.Slice(piece.origin, piece.directions, ""), other)
    rate(f"fpsolver, from_jax ({jax.default_backend()})", pairs, seconds, loop)


if __name__ == "__main__":
    main()
