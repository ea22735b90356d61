r"""What SGD does to a single neuron: fall into a bad minimum, escape from it, settle.

A neuron with sine activation predicts sin(w₀ a + w₁).  With weight decay λ its losses on samples (aᵢ, yᵢ) are

    fᵢ(w) = ½ (sin(w₀ aᵢ + w₁) − yᵢ)² + ½ λ |w|²,        f = (1/N) Σ fᵢ,        w ∈ R².

SGD with one sample per step is a Markov chain with the transition operator Pu(w) = (1/N) Σ u(w − η∇fᵢ(w)), and to first
order in the learning rate η it is the diffusion

    dW = −∇f(W) dt + √(η Σ(W)) dB,        Σ = (1/N) Σ (∇fᵢ − ∇f)(∇fᵢ − ∇f)ᵀ,        one step = time η.

With N = 20 samples Σ is regular; with N = 2 it has rank one everywhere.  Both losses have two minima.

1. Drift.  Started in the basin of the worse minimum, where does the density p (∂ₜp = ∇·(p∇f) + ½η ∂ᵢ∂ⱼ(Σᵢⱼ p)) go, and
   how fast?  Answer: the mass within 0.6 of each minimum, beside that of SGD.
2. Escape.  How many steps T until w₀ is beyond the saddle's?  (I − P) T = 1 for SGD, −∇f·∇τ + ½η Σ:∇∇τ = −1, T = τ/η
   for its diffusion.  Answer: both for five learning rates with error bars, and paths where they are affordable.  The
   two differ, ever more as η falls, because an escape takes many unlikely batches in a row: all cumulants of the noise
   decide how rare it is, of which the diffusion has two, and the gradient of one sample is far from Gaussian.
3. Limit.  How much of the invariant law is near each minimum, and when is it reached?

Run it (a minute on two cores; the forms are compiled in the first run) with

    mpirun -n 2 python3 demos/01_single_neuron.py
"""

# # Two sets of data

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from mpi4py import MPI

import numpy as np
import ufl

import fpsolver as fp

COMM = MPI.COMM_WORLD
OUTPUT = Path(__file__).parent / "output"
LAMBDA, RADIUS, EARLY, SHOWN = 0.1, 0.6, np.arange(0, 61, 4), 5
STEPS = np.unique(np.concatenate((EARLY, np.round(np.geomspace(60, 20_000, 14)))))
AFFORDABLE = 0.4  # from which on paths are simulated until they leave

rng = np.random.default_rng(11)
a, teacher = 1.5 * rng.normal(size=20), 1.5 * rng.normal(size=2)
TWENTY = np.array((a, np.sin(teacher[0] * a + teacher[1]) + 0.4 * rng.normal(size=20)))
TWO = np.array([[-0.75, -0.42], [-0.59, 1.18]])
CASES = {  # data, box whose walls, which reflect, carry no mass, start, learning rates of 1 and 3, and of 2
    "20 samples": (TWENTY, (-4.5, -4.4), (4.0, 1.4), (-2.8, -1.2), 0.3, (0.35, 0.4, 0.45, 0.5, 0.6)),
    "2 samples": (TWO, (-5.0, -1.2), (4.0, 4.4), (-3.0, 1.8), 0.5, (0.4, 0.45, 0.5, 0.55, 0.6)),
}


def sample(a, y):
    return lambda w: (ufl.sin(a * w[0] + w[1]) - y) ** 2 / 2 + LAMBDA / 2 * (w[0] ** 2 + w[1] ** 2)


# # The three questions


def study(data, low, high, start, eta, rates):
    sgd = fp.SGD(None, fp.PerSample([sample(*pair) for pair in data.T.tolist()]), eta)
    box, law = fp.Domain.rectangle(low, high, (22, 15)), fp.gaussian(start, 0.2)
    points = fp.diagnostics.critical_points(sgd, box)
    minima = [c.point for c in points if c.kind == "minimum"][::-1]  # the worse one first
    saddle = min((c for c in points if c.kind == "saddle"), key=lambda c: c.value)

    gen = fp.Generator(sgd, box, degree=3)
    flow = fp.evolve(gen, law, eta * STEPS, time_rtol=1e-4)
    grid = np.stack(np.meshgrid(*np.linspace(low, high, 202)[1:-1].T), axis=-1)
    laws = [p.at(grid.reshape(-1, 2)).reshape(200, 200) for p in (flow[SHOWN], flow[-1])]
    mass = fp.diagnostics.concentration(flow, minima, RADIUS, basins=False).ball_mass[:, :, 0]
    paths = fp.simulate(sgd, box, law, paths=4000, times=eta * EARLY, method="sgd", seed=1)
    early = [paths.expectation(lambda w, m=m: np.hypot(*(w.T - m).T) < RADIUS) for m in minima]

    left = fp.Domain.rectangle(low, (float(saddle.point[0]), high[1]), (20, 28), diagonal="right")
    escape = fp.diagnostics.validity(sgd, left, minima[0], absorbing="right", learning_rates=rates, degree=3)
    found = {}
    for rate in rates[rates.index(AFFORDABLE) :]:
        leaving = replace(sgd, learning_rate=rate)
        out = fp.simulate(leaving, left, minima[0], absorbing="right", method="sgd", paths=1000, seed=3)
        found[rate] = out.mean_exit_time(level=0.999).scaled(1 / rate)
    return SimpleNamespace(**locals())


# # Picture


def draw_laws(ax, name, r):
    x, y = np.moveaxis(r.grid, -1, 0)
    loss = sum((np.sin(a * x + y) - b) ** 2 for a, b in r.data.T) / 2 / r.data.shape[1] + LAMBDA / 2 * (x**2 + y**2)
    levels = np.linspace(loss.min(), 4 * r.saddle.value - 3 * loss.min(), 33)
    ax.contour(x, y, loss, levels=levels, colors="0.75", linewidths=0.6)
    for p, colours in zip(r.laws, ("Oranges", "Blues"), strict=True):
        shades = {"levels": (0.03, 0.1, 0.25, 0.5, 0.75, 1), "vmin": -0.3, "vmax": 1, "extend": "max"}
        ax.contourf(x, y, p / np.quantile(p, 0.999), cmap=colours, **shades)
    ax.axvline(r.saddle.point[0], color="k", ls="--", lw=1)
    for point, mark in ((r.minima[0], "k+"), (r.minima[1], "k+"), (r.saddle.point, "kx"), (r.start, "C3o")):
        ax.plot(*point, mark, ms=7)
    ax.set_title(f"{name}, η = {r.eta}: {STEPS[SHOWN]:.0f} (orange), {STEPS[-1]:.0f} steps (blue)")
    ax.set(aspect="equal", xlabel="weight w₀", ylabel="bias w₁")


def draw_masses(ax, r):
    for k, (name, colour) in enumerate((("worse", "C1"), ("better", "C0"))):
        ax.semilogx(STEPS[1:], r.mass[1:, k], colour, label=f"near the {name} minimum, diffusion")
        values, bars = np.array([(e.value, e.error) for e in r.early[k][1:]]).T
        ax.errorbar(EARLY[1:], values, bars, fmt="k.", ms=4, capsize=2, label=None if k else "SGD, 4000 paths")
    ax.set(xlabel="steps", ylabel="probability", xlim=(3, 3e4), ylim=(-0.03, 1.03), title="1, 3. Where the mass is")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=9)


def draw_escape(ax, r):
    e, x = r.escape, 1 / r.escape.learning_rates
    ax.errorbar(x, e.chain, e.chain_error, fmt="C3o-", ms=5, capsize=3, label="SGD, by its chain")
    ax.errorbar(x, e.diffusion, e.diffusion_error, fmt="C0^--", ms=5, label="its diffusion")
    values, bars = np.array([(p.value, p.error) for p in r.found.values()]).T
    ax.errorbar([1 / rate for rate in r.found], values, bars, fmt="ks", mfc="none", ms=11, label="SGD, 1000 paths")
    ax.set(xlabel="1 / learning rate", ylabel="mean steps", yscale="log", title="2. Escape from the worse minimum")
    ax.grid(alpha=0.25)
    ax.legend(loc="upper left", fontsize=9)


# # All of it, and claims

RESULTS, figure = {name: study(*case) for name, case in CASES.items()}, None
if COMM.rank == 0:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.6), layout="constrained")
    for axes, (name, r) in zip(figure.subplots(2, 3), RESULTS.items(), strict=True):
        draw_laws(axes[0], name, r)
        draw_masses(axes[1], r)
        draw_escape(axes[2], r)
        print(
            f"\n{name}, η = {r.eta}\n1. within {RADIUS} of the worse minimum after {STEPS[SHOWN]:.0f} steps: diffusion"
        )
        print(f"   {r.mass[SHOWN, 0]:.4f}, SGD {r.early[0][SHOWN]}\n2. escape: {r.escape}\n   by paths: {r.found}")
        print(f"3. near the worse, the better minimum in the end: {r.mass[-1]}", flush=True)
fp.plot.save(figure, OUTPUT / "single_neuron.png")
for r in RESULTS.values():
    e = r.escape
    assert np.abs(r.flow.mass - 1).max() < 1e-8, "mass is conserved"
    assert r.mass[:16, 0].max() > 0.85 and abs(r.mass[SHOWN, 0] - float(r.early[0][SHOWN])) < 0.15, "the drift is SGD's"
    for rate, by_paths in r.found.items():
        k = r.rates.index(rate)
        assert abs(by_paths.value - e.chain[k]) < by_paths.error + e.chain_error[k], "the chain is that of the paths"
    assert (e.diffusion_error < 0.01 * e.diffusion).all() and (e.chain_error < 0.3 * e.chain).all()
    assert (e.ratio > 2).all() and (np.diff(e.ratio) < 0).all(), "SGD stays longer, ever more so as η falls"
