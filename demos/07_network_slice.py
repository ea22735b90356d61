r"""A plane through a trained network: exit times of SGD that is confined to it, and what SGD does outside.

A network with weights w ∈ ℝᴾ is trained on N samples with losses f_i(w).  Through a trained point w₀ goes the plane

    w(x) = w₀ + V x,        VᵀV = I,   x ∈ ℝ²,

spanned by the two directions in which the gradients of the samples scatter most.  SGD whose every step is projected on
the plane has the per-sample losses f_i(w(x)), and to first order in the learning rate it is the diffusion

    dX = −∇f(w(X)) dt + √(η VᵀΣV / B) dW,        f = (1/N) Σ f_i,   one step = time η.

What the plane leaves out is stated: the shares of the noise, tr(Σ − VᵀΣV)/tr Σ, and of the drift.

Question: how many steps does SGD stay in a box around the minimum within the plane?  The PDE answers for the
diffusion, with an error bar; ``fp.simulate`` follows paths of the diffusion and the algorithm itself, with the very
same samples and batches.  One difference, of order √η, is known beforehand: the algorithm is seen only after whole
steps, which acts like walls farther out, so that it stays longer.  Where no wall is near there is no such effect: the
growth of the squared distance from the minimum, in a box three times as wide, is that of the PDE.

Run it (about a minute) with

    mpirun -n 2 python3 demos/07_network_slice.py
"""

# # Data, model, training
#
# Noisy values of a sine, one hidden layer, squared loss.  Rank 0 trains, for all ranks need the same weights to the
# last bit.

from pathlib import Path

from mpi4py import MPI

import numpy as np
import torch
from scipy.linalg import solve_continuous_lyapunov

import fpsolver as fp
from fpsolver.discretisation.solver import statistics

OUTPUT = Path(__file__).parent / "output"
COMM = MPI.COMM_WORLD
SAMPLES, UNITS, BATCH = 100, 40, 16
SIDES = ["left", "right", "bottom", "top"]
torch.set_num_threads(1)  # the ranks share the cores


def on_root(make):
    return COMM.bcast(make() if COMM.rank == 0 else None)


def noisy_sine(n, noise=0.3):
    random = np.random.default_rng(0)
    x = random.uniform(-3, 3, (n, 1))
    return x, np.sin(2 * x[:, 0]) + noise * random.normal(size=n)


def squared(outputs, targets):
    return (outputs[:, 0] - targets) ** 2 / 2


torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(1, UNITS), torch.nn.Tanh(), torch.nn.Linear(UNITS, 1))
network = fp.Network.from_torch(model, squared, noisy_sine(SAMPLES))
training = on_root(lambda: network.sgd(0.1, 3000, batch_size=BATCH, every=100))

# # The plane, its minimum, and a box of some standard deviations

plane = on_root(lambda: fp.Slice.noisiest(network, 2, origin=training[-1]))
V, minimum = plane.directions, np.zeros(2)
for _ in range(6):  # Newton
    w = plane.weights(minimum)[0]
    hessian = np.array([V.T @ network.hvp(w, v) for v in V.T])
    minimum = COMM.bcast(minimum - np.linalg.solve(hessian, V.T @ network.gradient(w)))
w0 = plane.weights(minimum)[0]
covariance = np.array([V.T @ network.noise(w0, v) for v in V.T])
eta = 0.01 / np.linalg.eigvalsh(hessian)[-1]  # a step goes one per cent of the way to the minimum
spread = np.sqrt(np.diag(solve_continuous_lyapunov(hessian, eta / BATCH * covariance)))
left_out = on_root(lambda: plane.left_out(network, [minimum, minimum + spread, minimum - spread]))

# # Exit times: PDE, paths of the diffusion, the algorithm

noise = plane.noise(network)
process = fp.SGD(None, noise, learning_rate=eta, batch_size=BATCH)


def steps_in(domain):
    gen = fp.Generator(process, domain, absorbing=SIDES, degree=4)
    tau = fp.mean_exit_time(gen, start=minimum)
    return gen, tau, float(tau.at(minimum)[0]) / eta, float(tau.error[0]) / eta


half = 1.6 * spread
square = fp.Domain.rectangle(minimum - half, minimum + half, (8, 8))
gen, tau, pde, pde_error = steps_in(square)
diffusion = fp.simulate(process, square, minimum, absorbing=SIDES, paths=2048, step=2 * eta, seed=1)
algorithm = fp.simulate(process, square, minimum, absorbing=SIDES, paths=2048, method="sgd", seed=2)
sde, sgd = (paths.mean_exit_time().scaled(1 / eta) for paths in (diffusion, algorithm))

# # Without walls: the squared distance from the minimum in standard deviations of the long run
#
# Nobody comes to the sides of this box.


def squared_distance(x):
    return sum(((x[i] - float(minimum[i])) / float(spread[i])) ** 2 for i in range(2))


counts = np.array([10, 30, 100])
wide_box = fp.Domain.rectangle(minimum - 3 * half, minimum + 3 * half, (8, 8))
with fp.Generator(process, wide_box, degree=4) as around:
    spreading = [float(u.at(minimum)[0]) for u in fp.backward(around, squared_distance, eta * counts)]
moving = fp.simulate(process, wide_box, minimum, method="sgd", paths=2048, times=eta * counts, seed=3)
spread_by_sgd = {level: moving.expectation(squared_distance, level) for level in (0.95, 0.999)}

# # SGD that is not confined
#
# The same start, learning rate and batch size, in all weights.

runs, every, length = 16, 10, 400
mine = [network.sgd(eta, length, BATCH, w0, seed, every) for seed in range(COMM.rank, runs, COMM.size)]
free = np.array([run for some in COMM.allgather(mine) for run in some])
steps = every * np.arange(free.shape[1])
inside = np.array([np.linalg.norm(plane.coordinates(run) - minimum, axis=1) for run in free])
outside = np.array([plane.distance(run) for run in free])
at_exit = np.argmin(np.abs(steps - pde))

# # Picture

times = eta * np.arange(length + 1)
few = fp.simulate(process, None, minimum, method="sgd", paths=3, times=times, seed=5, comm=COMM).positions
in_steps = tau.function.copy()
in_steps.x.array[:] /= eta
figure = None
if COMM.rank == 0:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    wide, box, values, away = figure.subplots(2, 2).ravel()
    along = plane.coordinates(training)
    low, high = along.min(axis=0) - 0.2, along.max(axis=0) + 0.2
    x = [np.linspace(a, b, 50) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*x), axis=-1)
    loss = noise.samples.moments(grid.reshape(-1, 2))[0].reshape(50, 50)
    shades = wide.contourf(*x, np.log10(loss), 30, cmap="viridis")
    figure.colorbar(shades, ax=wide, label="log₁₀ loss in the plane", format="%.1f")
    wide.plot(*along.T, "w.-", lw=1, ms=4, label="training, projected")
    wide.plot(*minimum, "r+", ms=12, mew=2, label="minimum in the plane; the box is smaller than this mark")
    wide.set(xlabel="x₁", ylabel="x₂", title="The plane, and the way to it")
    wide.legend(loc="upper left", fontsize=8)

    names = ("PDE", "paths of the diffusion", "SGD in the plane")
    found = ((pde, pde_error), (sde.value, sde.error), (sgd.value, sgd.error))
    for row, (value, error) in enumerate(found):
        values.errorbar(value, -row, xerr=error, fmt="o", color=f"C{row}", capsize=4)
        values.text(value, 0.15 - row, f"{value:.2f} ± {error:.1g}", ha="center", color=f"C{row}")
    values.set(ylim=(-2.5, 0.6), xlabel="mean exit time from the box in steps (95 %)")
    values.set_yticks([0, -1, -2], names)
    values.margins(x=0.2)
    values.set_title("Exit time: by PDE, its paths, and the algorithm")

    size = float(np.linalg.norm(half))
    for curves, colour, label in ((outside, "C3", "distance from the plane"), (inside, "C0", "move within the plane")):
        away.plot(steps, curves.T / size, color=colour, lw=0.5, alpha=0.4)
        away.plot(steps, np.median(curves, axis=0) / size, color=colour, lw=2, label=label)
    away.axvline(pde, color="0.6", lw=1)
    away.set(xlabel="steps", ylabel="length / half diagonal of the box", title=f"SGD in all {len(w0)} weights leaves")
    away.legend()
fp.plot.field(in_steps, ax=figure and box, label="mean exit time in steps", axes=("x₁", "x₂"), contours=6)
if COMM.rank == 0:
    for k, path in enumerate(few[:, i] for i in range(few.shape[1])):
        gone = np.flatnonzero(np.any(np.abs(path - minimum) > half, axis=1))
        end = gone[0] + 1 if len(gone) else len(path)
        box.plot(*path[:end].T, color=f"C{(1, 3, 6)[k]}", lw=0.8)
    margin = 1.15
    box.set(
        xlim=minimum[0] + np.array([-1, 1]) * margin * half[0], ylim=minimum[1] + np.array([-1, 1]) * margin * half[1]
    )
    box.set_title("SGD confined to the plane, until it leaves the box")
    box.ticklabel_format(useOffset=False)
fp.plot.save(figure, OUTPUT / "network_slice.png")

# # Report and claims

if COMM.rank == 0:
    print(f"{len(w0)} weights, {SAMPLES} samples; loss {network.losses(training[0]).mean():.4f}, trained")
    print(f"{network.losses(training[-1]).mean():.4f}, at the minimum in the plane {network.losses(w0).mean():.4f}")
    print(f"plane: {plane.what}; η = {eta:.3g}, B = {BATCH}\n\nwhat it leaves out\n{left_out}\n")
    print("mean exit time in steps")
    for name, (value, error) in zip(names, found, strict=True):
        print(f"{name:24} {value:9.4f} ± {error:.2g}")
    print(f"tabulation error of loss and Σ: {statistics(gen)['tabulation_error']:.1e}\n")
    print("mean squared distance from the minimum after some steps, without exits")
    print(" steps        PDE   SGD in the plane")
    for k, by_pde, by_sgd in zip(counts, spreading, spread_by_sgd[0.95], strict=True):
        print(f"{k:6} {by_pde:10.4f} {by_sgd!s:>18}")
    print()
    print(f"SGD in all weights leaves the plane (medians of {runs} runs)")
    print(" steps   distance from it   move within it   ratio")
    for k in (at_exit, -1):
        away_from, within = np.median(outside[:, k]), np.median(inside[:, k])
        print(f"{steps[k]:6} {away_from:18.2e} {within:16.2e} {away_from / within:7.2f}")

assert pde_error < 1e-3 * pde and statistics(gen)["tabulation_error"] < 1e-3
# an interval of 95 % misses in one of twenty runs
assert diffusion.mean_exit_time(level=0.999).scaled(1 / eta).covers(pde), "PDE and paths agree"
for value, paths in zip(spreading, spread_by_sgd[0.999], strict=True):
    assert paths.covers(value), "PDE and the algorithm agree where no wall is near"
assert sgd.low > pde, "without that the algorithm stays longer than its diffusion"
assert (outside[:, -1] > 0.5 * inside[:, -1]).mean() > 0.5, "SGD in all weights leaves the plane"
