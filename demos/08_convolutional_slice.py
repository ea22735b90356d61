r"""The line through two minima of a convolutional network, and the time SGD takes from one to the other.

Images of 8 × 8 pixels show a bar, upright (label 1) or lying (label 0), in noise; a third of the labels is wrong.  Four
filters of 3 × 3, squared tanh, the mean over all places, and one output unit are trained from two random starts.  On
the line w(x) = w₁ + x (w₂ − w₁)/|w₂ − w₁| through what they found, SGD that is confined to the line is to first order

    dX = −f'(X) dt + √(η Σ(X)/B) dW,        f = (1/N) Σ f_i,   Σ = (1/N) Σ (f_i' − f')²,

with the logistic losses f_i, one step being time η.  Σ is not constant: it is largest on the way up the barrier,
where the samples disagree most.  The mean time from the first minimum to the second is known by quadrature,

    τ(x) = ∫ₓᵇ e^{ψ(y)} ∫ₐ^y e^{−ψ(z)} / D(z) dz dy,        D = η Σ/(2B),   ψ' = f'/D,

with a reflecting and b absorbing, against which the PDE is held, for three learning rates from one assembly.  The
algorithm itself is simulated with the same samples.

Within the first basin the two agree: the time that SGD stays in a box of 1.6 standard deviations is that of the PDE
whose walls are moved outwards by what Gaussian steps overshoot on average, −ζ(1/2)/√(2π) = 0.5826 standard deviations
of a step (Siegmund 1979), although batches have one sample.

Over the barrier SGD takes a third longer than its diffusion, for two reasons.  First, steps are long, ηf'' = 0.2 to
0.3: a walk with Gaussian noise of the same Σ, whose mean time is found by quadrature of its transitions, takes 9 to
12 % longer (late sight of the arrival is 1 % of it at most).  Second, a climb is a rare event made of many unlikely
batches, and the noise of one sample is skewed.  To climb by dx costs the diffusion a factor e^{−2f'dx/(ηΣ)}, but the
algorithm e^{−u dx/η} with

    (1/N) Σ exp(−u f_i'(x)) = 1,        u = 2f'/Σ only for Gaussian noise

(Cramér and Lundberg's exponent).  This difference does not vanish for small η, it grows like e^{c/η}: there the
diffusion picture does not hold, however small the steps.  The PDE with the drift −Σu/2 in place of −f' has the right
exponent; with it and the factor of the Gaussian walk the times are those of SGD within its intervals.

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
from scipy.stats import norm

import fpsolver as fp

OUTPUT = Path(__file__).parent / "output"
COMM = MPI.COMM_WORLD
SAMPLES, FILTERS = 120, 4
RATES = (16.0, 20.0, 25.0)


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


def gaussian_walk(eta, n=1000):
    """Mean steps of x ↦ x − ηf'(x) + η√Σ ξ with Gaussian ξ, from its transitions between n cells; a reflects."""
    edges = np.linspace(grid[0], target, n + 1)
    x = (edges[1:] + edges[:-1]) / 2
    mean, std = (x - eta * np.interp(x, grid, slope))[:, None], eta * np.sqrt(np.interp(x, grid, variance))[:, None]
    passed = norm.cdf((edges - mean) / std) + norm.sf((2 * grid[0] - edges - mean) / std)
    steps = np.linalg.solve(np.eye(n) - np.diff(passed, axis=1), np.ones(n))
    return float(np.interp(starts, x, steps))


def exponent():
    """u at the grid, by Newton's method from 2f'/Σ."""
    g = noise.samples.losses_and_gradients(grid[:, None])[1][:, :, 0]
    u = 2 * slope / variance
    for _ in range(40):
        lost = np.expm1(-u[:, None] * g).mean(axis=1) / u
        rate = (-(g * np.exp(-u[:, None] * g)).mean(axis=1) - lost) / u
        u = u - np.clip(lost / rate, -0.5, 0.5)
    assert np.abs(np.expm1(-u[:, None] * g).mean(axis=1)).max() < 1e-10
    return u


u = on_root(exponent)
drift, spread = CubicSpline(grid, -variance * u / 2), CubicSpline(grid, variance)


def with_exponent(eta):
    """Steps by the PDE whose exponent is that of the algorithm."""
    diffusion = fp.batched(lambda x: eta / 2 * spread(x)[:, :, None])
    with fp.Generator(fp.SDE(fp.batched(lambda x: drift(x)), diffusion), domain, absorbing=["right"]) as gen:
        return float(fp.mean_exit_time(gen).at((starts,))[0]) / eta


rows, fields = [], []
for seed, eta in enumerate(RATES):
    gen = base.replace(learning_rate=eta)
    tau = fp.mean_exit_time(gen, start=(starts,))
    paths = fp.simulate(gen.process, domain, (starts,), absorbing="right", paths=2048, method="sgd", seed=seed)
    sgd = paths.mean_exit_time().scaled(1 / eta)
    pde, error = float(tau.at((starts,))[0]) / eta, float(tau.error[0]) / eta
    reasons = (gaussian_walk(eta) / pde, with_exponent(eta) / pde)
    rows.append((eta, pde, error, closed_form(eta), sgd, reasons, pde * reasons[0] * reasons[1]))
    fields.append(tau.at(grid[::10][grid[::10] < target]) / eta)

# # In the first basin
#
# A learning rate at which a step goes about one per cent of the way to the minimum.

small, sides = 1.0, ["left", "right"]
curvature = float(CubicSpline(grid, slope)(starts, 1))
half = 1.6 * np.sqrt(small * float(spread(starts)) / (2 * curvature))
process, box = fp.SGD(None, noise, small), fp.Domain.interval(starts - half, starts + half, 16)
low, high = (
    end + side * 0.5826 * small * np.sqrt(float(spread(end))) for end, side in ((starts - half, -1), (starts + half, 1))
)
inside = []
for where in (box, fp.Domain.interval(low, high, 16)):
    with fp.Generator(process, where, absorbing=sides) as gen:
        tau = fp.mean_exit_time(gen, start=(starts,))
        inside.append((float(tau.at((starts,))[0]) / small, float(tau.error[0]) / small))
stay = fp.simulate(process, box, (starts,), absorbing=sides, paths=4096, method="sgd", seed=7)

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
    for i, (eta, values) in enumerate(zip(RATES, fields, strict=True)):
        middle.plot(shown, values, f"C{i}", label=f"η = {eta:g}")
    middle.axvline(starts, color="0.7", lw=1)
    middle.set(xlabel="start x", ylabel="mean steps to the target", title="PDE: time to the second minimum")
    middle.legend()
    eta, pde, _, exact, found, _, explained = (np.array(column) for column in zip(*rows, strict=True))
    right.plot(eta, pde, "k-", label="PDE")
    right.plot(eta, exact, "kx", ms=9, label="closed form")
    right.plot(eta, explained, "C0--", label="PDE with the exponent of\nSGD, times the Gaussian walk's")
    bars_of = [f.error for f in found]
    right.errorbar(eta, [f.value for f in found], bars_of, fmt="C3s", capsize=4, label="SGD on the line, 95 %")
    right.set(xlabel="learning rate η", ylabel="mean steps", yscale="log", title="The diffusion and the algorithm")
    right.set_yticks([300, 500, 1000, 2000], ["300", "500", "1000", "2000"])
    right.set_ylim(270, 4500)  # room for the legend
    right.minorticks_off()
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
    print(f"PDE {inside[0][0]:.2f}, its walls moved {inside[1][0]:.2f} (errors {inside[1][1]:.0e}),", end=" ")
    print(f"SGD {stay.mean_exit_time().scaled(1 / small)}\n\nmean steps to the second minimum")
    print("  η   PDE, steps      error   closed form   SGD on the line   relative to the PDE's − 1")
    print(f"{'':58}{'SGD':>14} {'long steps':>11} {'exponent':>9} {'both':>6}")
    for eta, pde, error, exact, sgd, (steps, tail), both in rows:
        gap = f"{sgd.value / pde - 1:+.1%} ± {sgd.error / pde:.1%}"
        cells = f"{gap:>14} {steps - 1:>+11.1%} {tail - 1:>+9.1%} {both / pde - 1:>+6.0%}"
        print(f"{eta:4g} {pde:11.4f} {error:10.1e} {exact:13.4f} {sgd!s:>17} {cells}")
    print(f"tabulation error of loss and Σ: {tau.stats['tabulation_error']:.1e}")

assert inside[1][1] < 1e-3 * inside[1][0], "the PDE's own error is small"
assert stay.mean_exit_time(level=0.999).scaled(1 / small).covers(inside[1][0]), "PDE and SGD agree in the basin"
assert stay.mean_exit_time().low / small > inside[0][0], "with the walls as they are the PDE's time is too short"
for _, pde, error, exact, sgd, (steps, _), both in rows:
    assert abs(pde / exact - 1) < 1e-5 and error < 1e-5 * pde
    assert sgd.low > pde, "the algorithm is slower over the barrier than its diffusion"
    assert abs(sgd.value - both) < 3.3 / 1.96 * sgd.error, "long steps and the exponent explain it"
    assert sgd.low > steps * pde, "long steps alone do not"
assert tau.stats["tabulation_error"] < 1e-3
