r"""The line through two minima of a convolutional network, and the time SGD takes from one to the other.

Images of 8 × 8 pixels show a bar, upright (label 1) or lying (label 0), in noise; a third of the labels is wrong.  Four
filters of 3 × 3, squared tanh, the mean over all places, and one output unit are trained from two random starts.  On
the line w(x) = w₁ + x (w₂ − w₁)/|w₂ − w₁| through what they found, SGD that is confined to the line is to first order

    dX = −f'(X) dt + √(η Σ(X)/B) dW,        f = (1/N) Σ f_i,   Σ = (1/N) Σ (f_i' − f')²,

with the logistic losses f_i, one step being time η.  Σ is not constant: it is largest on the way up the barrier,
where the samples disagree most.  The mean time from the first minimum to the second is known by quadrature,

    τ(x) = ∫ₓᵇ e^{ψ(y)} ∫ₐ^y e^{−ψ(z)} / D(z) dz dy,        D = η Σ/(2B),   ψ' = f'/D,

with a reflecting and b absorbing, against which the PDE is held, for six learning rates from one assembly.  For the
algorithm itself, the Markov chain x' = x − ηf_i'(x), (I − P) T = 1 is solved with its transition operator
P u(x) = (1/N) Σ u(x − ηf_i'(x)), and paths with the same samples are drawn for the largest learning rates.

Within the first basin the two agree: the time that SGD stays in a box of 1.6 standard deviations is that of the PDE
whose walls are moved outwards by what Gaussian steps overshoot on average, −ζ(1/2)/√(2π) = 0.5826 standard deviations
of a step (Siegmund 1979), although batches have one sample.

Over the barrier SGD takes longer than its diffusion, because a climb is a rare event made of many unlikely batches and
the noise of one sample is skewed: to climb by dx costs the diffusion a factor e^{−2f'dx/(ηΣ)}, but the algorithm
e^{−u dx/η} with

    (1/N) Σ exp(−u f_i'(x)) = 1,        u = 2f'/Σ only for Gaussian noise

(Cramér and Lundberg's exponent), so that the ratio of the two grows like e^{c/η} as η falls.

Run it (about a minute) with JAX or PyTorch, whichever is there:

    mpirun -n 2 python3 demos/08_convolutional_slice.py
"""

# # Data and model

import importlib.util
from pathlib import Path

from mpi4py import MPI

import numpy as np
from scipy.integrate import cumulative_simpson
from scipy.interpolate import CubicSpline

import fpsolver as fp

OUTPUT = Path(__file__).parent / "output"
COMM = MPI.COMM_WORLD
SAMPLES, FILTERS = 120, 4
RATES = (8.0, 10.0, 12.5, 16.0, 20.0, 25.0)
AFFORDABLE = 20.0  # from which on paths are simulated


def on_root(make):
    return COMM.bcast(make() if COMM.rank == 0 else None)


def bars(n):
    random, label = np.random.default_rng(0), np.arange(n) % 2
    images = 0.4 * random.normal(size=(n, 8, 8))
    for image, upright in zip(images, label, strict=True):
        at = random.integers(8)
        image[(slice(None), at) if upright else at] += 1
    label[: n // 3] = 1 - label[: n // 3]
    return images, label.astype(float)


def patches(images):
    """(n, 8, 8) -> (n, 36, 9): a convolution is a product with these."""
    return np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2)).reshape(-1, 36, 9)


def with_jax(data):
    import jax.numpy as jnp

    def apply(params, x):
        filters, bias, weights, constant = params
        return (jnp.tanh(x @ filters.T + bias) ** 2).mean(axis=1) @ weights + constant

    def logistic(outputs, labels):
        return jnp.logaddexp(0, outputs) - labels * outputs

    params = [np.zeros((FILTERS, 9)), np.zeros(FILTERS), np.zeros(FILTERS), np.zeros(())]
    return fp.Network.from_jax(apply, params, logistic, data)


def with_torch(data):
    import torch

    torch.set_num_threads(1)

    class Convolution(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.filters, self.output = torch.nn.Linear(9, FILTERS), torch.nn.Linear(FILTERS, 1)

        def forward(self, x):
            return self.output((torch.tanh(self.filters(x)) ** 2).mean(dim=1))[:, 0]

    def logistic(outputs, labels):
        return torch.nn.functional.softplus(outputs) - labels * outputs

    return fp.Network.from_torch(Convolution(), logistic, data)


images, labels = bars(SAMPLES)
has_jax = importlib.util.find_spec("jax") is not None
network = (with_jax if has_jax else with_torch)((patches(images), labels))

# # Two minima and the line through them


def trained(seed):
    w = np.random.default_rng(seed).normal(scale=0.6, size=len(network.weights))
    w = network.sgd(0.5, 1500, batch_size=20, start=w, seed=seed, every=1500)[-1]
    for _ in range(300):
        w = w - 0.5 * network.gradient(w)
    return w


ends = on_root(lambda: [trained(seed) for seed in (2, 3)])
line = fp.Slice.through(ends)
noise = line.noise(network)
length = float(np.linalg.norm(ends[1] - ends[0]))
grid = np.linspace(-0.4 * length, 1.3 * length, 1701)
loss, slope, variance = (COMM.bcast(v.reshape(-1)) for v in noise.samples.moments(grid[:, None]))

# # The PDE for three learning rates, its closed form, and what it leaves out

starts = grid[np.argmin(np.where(grid < length / 2, loss, np.inf))]
target = grid[np.argmin(np.where(grid > length / 2, loss, np.inf))]
domain = fp.Domain.interval(grid[0], target, 80)
base = fp.Generator(fp.SGD(None, noise, RATES[0]), domain, absorbing=["right"])


def closed_form(eta):
    """In steps, from values at the grid."""
    part = grid <= target + 1e-9
    x, D = grid[part], eta * variance[part] / 2
    psi = cumulative_simpson(slope[part] / D, x=x, initial=0)
    arrived = cumulative_simpson(np.exp(-psi) / D, x=x, initial=0)
    tau = cumulative_simpson(np.exp(psi) * arrived, x=x, initial=0)
    return float(tau[-1] - np.interp(starts, x, tau)) / eta


slopes = COMM.bcast(noise.samples.losses_and_gradients(grid[:, None])[1][:, :, 0])  # (places, samples)
by_sample = [CubicSpline(grid, g) for g in slopes.T]


def chain_of(eta, domain, absorbing):
    """SGD on the line: x' = x − η f_i'(x), all samples i alike."""
    step = lambda x, i: x - eta * by_sample[i](x)  # noqa: E731
    return fp.Chain.of_step(step, range(SAMPLES), domain, absorbing, time_per_step=eta)


def exponent():
    """u at the grid, by Newton's method from 2f'/Σ."""
    u = 2 * slope / variance
    for _ in range(40):
        lost = np.expm1(-u[:, None] * slopes).mean(axis=1) / u
        rate = (-(slopes * np.exp(-u[:, None] * slopes)).mean(axis=1) - lost) / u
        u = u - np.clip(lost / rate, -0.5, 0.5)
    assert np.abs(np.expm1(-u[:, None] * slopes).mean(axis=1)).max() < 1e-10
    return u


# the exponents of both, from the first minimum to the top, per 1/η
between = (grid >= starts) & (grid <= target)
way = between & (grid <= grid[between][np.argmax(loss[between])])
climb = [float(np.trapezoid(v[way], grid[way])) for v in (2 * slope / variance, exponent())]

pde, sgd, found, fields = [], [], {}, {}
for seed, eta in enumerate(RATES):
    gen = base.replace(learning_rate=eta)
    tau = fp.mean_exit_time(gen, start=(starts,))
    fields[eta] = tau.at(grid[::10][grid[::10] < target]) / eta
    pde.append((float(tau) / eta, float(tau.error[0]) / eta, closed_form(eta)))
    steps = fp.mean_exit_time(chain_of(eta, domain, ["right"]), start=(starts,)).in_steps()
    sgd.append((float(steps), float(steps.error[0])))
    if eta >= AFFORDABLE:
        paths = fp.simulate(gen.process, domain, (starts,), absorbing="right", paths=1000, method="sgd", seed=seed)
        found[eta] = paths.mean_exit_time().scaled(1 / eta)
pde, sgd = np.array(pde), np.array(sgd)
ratio = sgd[:, 0] / pde[:, 0]
growth = float(np.log(ratio[0] / ratio[2]) / (1 / RATES[0] - 1 / RATES[2]))

# # In the first basin
#
# A learning rate at which a step goes about one per cent of the way to the minimum.

small, sides = 1.0, ["left", "right"]
spread = CubicSpline(grid, variance)
curvature = float(CubicSpline(grid, slope)(starts, 1))
half = 1.6 * np.sqrt(small * float(spread(starts)) / (2 * curvature))
process, box = fp.SGD(None, noise, small), fp.Domain.interval(starts - half, starts + half, 16)
low, high = (
    end + side * 0.5826 * small * np.sqrt(float(spread(end))) for end, side in ((starts - half, -1), (starts + half, 1))
)
inside = []
for where in (box, fp.Domain.interval(low, high, 16)):
    with fp.Generator(process, where, absorbing=sides) as gen:
        there = fp.mean_exit_time(gen, start=(starts,)).in_steps()
        inside.append((float(there), float(there.error[0])))
stay = fp.mean_exit_time(chain_of(small, box, sides), start=(starts,)).in_steps()

# # Picture

if COMM.rank == 0:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(grid, loss, "C0", lw=2)
    for place, name in ((starts, "start"), (target, "target")):
        left.axvline(place, color="0.7", lw=1)
        left.text(place, loss.max(), f" {name}", va="top", color="0.4")
    left.set(xlabel="x along the line", title="Loss and noise between two minima")
    left.set_ylabel("mean loss", color="C0")
    noisy = left.twinx()
    noisy.plot(grid, variance, "C3")
    noisy.set_ylabel("Σ", color="C3")
    noisy.set_ylim(0, 1.3 * variance.max())
    shown = grid[::10][grid[::10] < target]
    for i, eta in enumerate(RATES[::2]):
        middle.semilogy(shown, fields[eta], f"C{i}", label=f"η = {eta:g}")
    middle.axvline(starts, color="0.7", lw=1)
    middle.set(xlabel="start x", ylabel="mean steps to the target", title="PDE: time to the second minimum")
    middle.legend()
    inverse = 1 / np.array(RATES)
    right.errorbar(inverse, *sgd.T, fmt="C3o-", ms=5, capsize=3, label="SGD, by its chain")
    right.plot(inverse, pde[:, 0], "C0^--", ms=5, label="its diffusion, by the PDE")
    right.plot(inverse, pde[:, 2], "kx", ms=9, label="the same in closed form")
    values = [p.value for p in found.values()]
    bars_of = [p.error for p in found.values()]
    right.errorbar([1 / eta for eta in found], values, bars_of, fmt="ks", mfc="none", ms=11, label="SGD, 1000 paths")
    right.set(
        xlabel="1 / learning rate", ylabel="mean steps", yscale="log", title="Escape: the algorithm, its diffusion"
    )
    right.grid(alpha=0.25)
    right.legend()
    OUTPUT.mkdir(exist_ok=True)
    figure.savefig(OUTPUT / "convolutional_slice.png", dpi=150)

# # Report and claims

left_out = on_root(lambda: line.left_out(network, [[starts], [length / 2], [target]]))
if COMM.rank == 0:
    wrong = [(network.losses(w) > np.log(2)).mean() for w in ends]
    print(f"{'JAX' if has_jax else 'PyTorch'}: {len(network.weights)} weights, {SAMPLES} images")
    print(f"wrongly classified at the ends of the line: {wrong[0]:.0%} and {wrong[1]:.0%} (a third of labels is wrong)")
    print(f"what the line leaves out\n{left_out}\n")
    print(f"mean steps in ±{half:.2f} around the first minimum, η = {small:g}")
    print(f"PDE {inside[0][0]:.2f}, its walls moved {inside[1][0]:.2f} (errors {inside[1][1]:.0e}), SGD {stay}\n")
    print("mean steps to the second minimum")
    print("   η   PDE, steps      error   closed form   SGD by its chain    ratio   SGD, paths")
    for eta, (value, error, exact), (steps, bar) in zip(RATES, pde, sgd, strict=True):
        cells = f"{steps:11.3f} ± {bar:.1e} {steps / value:8.4f}   {found.get(eta, '')!s}"
        print(f"{eta:4g} {value:12.4f} {error:10.1e} {exact:13.4f} {cells}")
    print(f"the ratio grows like e^(c/η): c = {growth:.2f} measured, {climb[1] - climb[0]:.2f} by the exponents")
    print(f"tabulation error of loss and Σ: {tau.stats['tabulation_error']:.1e}")

assert inside[1][1] < 1e-3 * inside[1][0], "the PDE's own error is small"
assert abs(float(stay) / inside[1][0] - 1) < 0.03, "PDE and SGD agree in the basin"
assert float(stay) > 1.1 * inside[0][0], "with the walls as they are the PDE's time is too short"
assert (np.abs(pde[:, 0] / pde[:, 2] - 1) < 1e-5).all() and (pde[:, 1] < 1e-5 * pde[:, 0]).all()
for eta, paths in found.items():
    steps, bar = sgd[RATES.index(eta)]
    assert abs(paths.value - steps) < bar + 3.3 / 1.96 * paths.error, "the chain is that of the paths"
assert (sgd[:, 1] < 1e-2 * sgd[:, 0]).all() and (np.diff(ratio) < 0).all() and ratio[-1] > 1.1
assert tau.stats["tabulation_error"] < 1e-3
