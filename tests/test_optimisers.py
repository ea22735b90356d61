"""Other algorithms: their chains against paths of the same steps."""

import numpy as np
import pytest
from tools import within

import fpsolver as fp


def sample(sign):
    return lambda x: (x[0] ** 2 - 1) ** 2 / 4 - sign * 0.9 * x[0]


NOISE = fp.PerSample([sample(1.0), sample(-1.0)])


def one():
    return fp.Domain.interval(-2, 0.5, 60), (-1.0,)


def two(low, high, inner):
    return fp.Domain.rectangle((-2.0, low), (0.5, high), (16, 14)), (-1.0, inner)


def three():
    return fp.Domain.box((-1.8, -3, 0), (0.5, 3, 6), (5, 5, 5)), (-1.0, 0.0, 0.8)


CASES = {
    "clipping": (fp.ClippedSGD(None, NOISE, 0.3, threshold=0.8), one),
    "signs": (fp.SignSGD(None, NOISE + fp.Isotropic(0.3), 0.17), one),
    "heavy ball": (fp.MomentumSGD(None, NOISE, 0.1, 0.6), lambda: two(-3, 3, 0.0)),
    "Nesterov": (fp.Nesterov(None, NOISE, 0.1, momentum=0.6), lambda: two(-3, 3, 0.0)),
    "RMSprop": (fp.RMSprop(None, NOISE, 0.25, decay=0.8, epsilon=0.1), lambda: two(0, 9, 0.8)),
    "Adam": (fp.Adam(None, NOISE, 0.3, beta1=0.5, beta2=0.8, epsilon=0.1, weight_decay=0.05), three),
}


@pytest.mark.parametrize("name", CASES)
def test_against_paths(name):
    process, place = CASES[name]
    domain, start = place()
    chain = fp.Chain(process, domain, ["right"], batches=16 if name == "signs" else None)
    tau = fp.mean_exit_time(chain)
    paths = fp.simulate(process, domain, start, absorbing="right", method="sgd", paths=10_000)
    value = float(tau.at([start])[0])
    # steps of signs lie on a lattice of their own, and the cube is coarse
    bias = {"signs": 0.03, "Adam": 0.04}.get(name, 0.01) * value
    within(paths.mean_exit_time(), value, bias)
    assert float(tau.in_steps().at([start])[0]) == pytest.approx(value / process.time_per_step)


def test_what_they_refuse():
    with pytest.raises(TypeError, match="not a diffusion"):
        fp.Generator(CASES["clipping"][0], one()[0], ["right"])
    with pytest.raises(ValueError, match="2 coordinates per weight"):
        fp.Chain(CASES["Nesterov"][0], one()[0])
    with pytest.raises(ValueError, match="threshold"):
        fp.ClippedSGD(None, NOISE, 0.1, threshold=0.0)
    with pytest.raises(ValueError, match="beta2"):
        fp.Adam(None, NOISE, 0.1, beta2=1.0)


def test_formulas():
    """One step of each by hand."""
    process = fp.Adam(None, NOISE, 0.1, beta1=0.5, beta2=0.75, epsilon=0.1, weight_decay=0.2)
    state = process.move(np.array([1.0, 0.2, 0.4]), np.array([2.0]))
    m, s = 0.5 * 0.2 + 0.5 * 2, 0.75 * 0.4 + 0.25 * 4
    assert state == pytest.approx([1.0 - 0.1 * (m / (np.sqrt(s) + 0.1) + 0.2 * 1.0), m, s])
    clipped = fp.ClippedSGD(None, NOISE, 0.1, threshold=1.0).move(np.zeros(2), np.array([3.0, 4.0]))
    assert clipped == pytest.approx([-0.06, -0.08])


@pytest.mark.parametrize("backend", ["ufl", "torch", "jax"])
def test_relu(backend):
    """Nothing special is needed where a loss has kinks."""
    a, y = np.array([1.0, -1.5, 0.7]), np.array([0.9, 1.1, -0.2])
    if backend == "ufl":
        import ufl

        def one_of(a, y):
            return lambda w: (ufl.max_value(a * w[0] + 0.3, 0.0) - y) ** 2 / 2 + 0.05 * w[0] ** 2

        noise = fp.PerSample([one_of(*pair) for pair in zip(a.tolist(), y.tolist(), strict=True)])
    elif backend == "torch":
        torch = pytest.importorskip("torch")
        noise = fp.PerSample.from_torch(
            lambda w, a, y: (torch.relu(a * w[0] + 0.3) - y) ** 2 / 2 + 0.05 * w[0] ** 2, (a, y)
        )
    else:
        jnp = pytest.importorskip("jax.numpy")
        noise = fp.PerSample.from_jax(
            lambda w, a, y: (jnp.maximum(a * w[0] + 0.3, 0.0) - y) ** 2 / 2 + 0.05 * w[0] ** 2, (a, y)
        )
    process, domain = fp.SGD(None, noise, 0.7), fp.Domain.interval(-0.55, 0.6, 80)
    tau = fp.mean_exit_time(fp.Chain(process, domain, ["left"]), start=[0.1])
    paths = fp.simulate(process, domain, (0.1,), absorbing="left", method="sgd", paths=10_000)
    within(paths.mean_exit_time(), float(tau), 2 * float(tau.error[0]))
