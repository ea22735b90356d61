r"""What SGD does to a single neuron: fall into a bad minimum, escape from it, settle.

A neuron with sine activation predicts sin(w₀ a + w₁).  Trained on N samples (aᵢ, yᵢ) with weight decay λ, it has the
losses and the loss

    fᵢ(w) = ½ (sin(w₀ aᵢ + w₁) − yᵢ)² + ½ λ |w|²,        f = (1/N) Σ fᵢ,        w ∈ R².

SGD with one sample per step and learning rate η is, to first order in η, the diffusion

    dW = −∇f(W) dt + √(η Σ(W)) dB,        Σ = (1/N) Σ (∇fᵢ − ∇f)(∇fᵢ − ∇f)ᵀ,        one step = time η,

so that D = ½ η Σ.  Both data sets below give two minima of different depth.  With N = 20 samples Σ is regular; with
N = 2 it has rank one everywhere, and noise acts in a single direction.  Three questions are asked about each:

1. Drift.  Started in the basin of the worse minimum, where does the density p (∂ₜp = ∇·(p∇f) + ∂ᵢ∂ⱼ(Dᵢⱼ p)) go, and how
   fast?  Answer: the mass within 0.6 of the minima at each time, beside that of SGD itself.
2. Escape.  On the worse minimum's basin of attraction, which ends at the saddle's stable manifold S (the separatrix),
   the mean exit time solves −∇f·∇τ + D:∇∇τ = −1 with τ = 0 on S.  Answer: τ with its error bar, paths of the
   diffusion, which agree, and SGD itself, which need not: the diffusion has the mean and the covariance of its
   steps, but how long rare events take is decided by all cumulants of the noise.  The gradient of one sample is bounded
   and far from Gaussian, and SGD stays several times longer.
3. Limit.  The invariant density: how much of it is near each minimum, and at what rate does the law get there?

Error bars: of exit times those of the solver; of masses the difference of two meshes; of simulations 95 %.  Run it
(half a minute on two cores; the forms are compiled in the first run) with

    mpirun -n 2 python3 demos/01_single_neuron.py
"""

# # The neuron, its data, and what is asked about them
#
# The package gets the losses in UFL, which differentiates them.  The gradient in numpy is for the gradient flow.

from dataclasses import dataclass, replace
from pathlib import Path

from mpi4py import MPI

import numpy as np
import ufl
from scipy.integrate import solve_ivp

import fpsolver as fp
from fpsolver import diagnostics

comm = MPI.COMM_WORLD
OUTPUT = Path(__file__).parent / "output"
LAMBDA, RADIUS, EARLY = 0.1, 0.6, 60


@dataclass
class Case:
    """The box is as large as needed for its walls, which reflect, to carry no mass."""

    name: str
    tag: str  # in file names
    a: np.ndarray
    y: np.ndarray
    low: tuple
    high: tuple
    ceiling: float  # w₁ at which the basin is cut off: further up its edge is a ridge, no separatrix
    cells: tuple
    start: tuple  # where training starts
    eta: float
    etas: tuple  # learning rates for the exit times
    compared: float  # the one at which paths are simulated

    def losses(self):
        def sample(a, y):
            return lambda w: (ufl.sin(a * w[0] + w[1]) - y) ** 2 / 2 + LAMBDA / 2 * (w[0] ** 2 + w[1] ** 2)

        return [sample(float(a), float(y)) for a, y in zip(self.a, self.y, strict=True)]

    def gradient(self, w):
        z = self.a * w[0] + w[1]
        slope = (np.sin(z) - self.y) * np.cos(z)
        return np.array([(slope * self.a).mean(), slope.mean()]) + LAMBDA * np.asarray(w)


def twenty_samples():
    rng = np.random.default_rng(11)
    a = 1.5 * rng.normal(size=20)
    teacher = 1.5 * rng.normal(size=2)
    return a, np.sin(teacher[0] * a + teacher[1]) + 0.4 * rng.normal(size=20)


CASES = [
    Case(
        "20 samples", "20", *twenty_samples(), low=(-4.0, -4.4), high=(4.0, 1.4), ceiling=0.5, cells=(20, 15),
        start=(-2.8, -1.2), eta=0.3, etas=(0.2, 0.25, 0.3, 0.4, 0.6), compared=0.6,
    ),
    Case(
        "2 samples", "2", np.array([-0.75, -0.42]), np.array([-0.59, 1.18]), low=(-5.0, -1.2), high=(4.0, 4.4),
        ceiling=4.4, cells=(25, 15), start=(-3.0, 1.8), eta=0.5, etas=(0.25, 0.3, 0.4, 0.5, 0.6), compared=0.6,
    ),
]  # fmt: skip


# # Question 1 and 3: one evolution, from the first steps to the limit, and SGD itself for the first ones


def near(point):
    return lambda w: (np.hypot(w[0] - point[0], w[1] - point[1]) < RADIUS).astype(float)


def study_masses(case, process, worse, better):
    """Steps, masses near both minima and their error bars on them, the density, its limit, the ensemble of SGD."""
    early = np.arange(0, EARLY + 1, 4)
    steps = np.unique(np.concatenate((early, np.round(np.geomspace(EARLY, 20_000, 14)))))
    start, answers = fp.gaussian(case.start, 0.2), []
    for degree in (2, 3):
        gen = fp.Generator(process, fp.Domain.rectangle(case.low, case.high, case.cells), degree=degree)
        flow = fp.evolve(gen, start, case.eta * steps, time_rtol=1e-4)
        answers.append(diagnostics.concentration(flow, [worse, better], RADIUS, basins=False).ball_mass[:, :, 0])
    rough, fine = answers
    ensemble = fp.simulate(process, gen.domain, start, paths=4000, times=case.eta * early, method="sgd", seed=1)
    sgd = [ensemble.expectation(near(point)) for point in (worse, better)]
    report = diagnostics.landscape(process, gen.domain, ensemble=ensemble)
    limit = fp.stationary(gen)
    return {
        "steps": steps, "mass": fine, "error": np.abs(fine - rough), "flow": flow, "limit": limit,
        "sgd": sgd, "early": early, "landscape": report, "rate": limit.stats["relaxation_rate"],
    }  # fmt: skip


# # Question 2: the basin of attraction and the way out
#
# Backwards in time the gradient flow leaves the saddle along the separatrix, which in both cases runs from the lower to
# the upper wall with the worse basin on its left.


def separatrix(case, saddle, spacing=0.15):
    """Points on the separatrix from the lower wall to the upper one, shape (n, 2)."""
    direction = np.linalg.eigh(saddle.hessian)[1][:, 1]
    direction *= np.sign(direction[1])

    def uphill(s, w):  # parametrised by arc length
        g = case.gradient(w)
        return g / np.linalg.norm(g)

    def branch(sign, wall):
        def at_wall(s, w):
            return w[1] - wall

        at_wall.terminal = True
        begin = saddle.point + sign * 1e-4 * direction
        path = solve_ivp(uphill, (0, 30), begin, events=at_wall, rtol=1e-9, atol=1e-12, dense_output=True)
        return path.sol(np.linspace(0, path.t[-1], int(np.ceil(path.t[-1] / spacing)) + 1)).T

    points = np.vstack((branch(-1, case.low[1])[:0:-1], [saddle.point], branch(1, case.ceiling)[1:]))
    assert (np.diff(points[:, 1]) > 0).all() and abs(points[-1, 1] - case.ceiling) < 1e-6
    return points


def study_escape(case, process, edge, worse):
    """The exit time; from the worse minimum for each learning rate, with its error bar; deviation/τ; paths."""
    corners = [(case.low[0], case.ceiling), case.low]
    basin = fp.Domain.polygon(np.vstack((edge, corners)), 0.5, edges={"separatrix": range(len(edge) - 1)})
    gen = fp.Generator(process, basin, absorbing=["separatrix"], degree=3)
    others = [gen.replace(learning_rate=eta) for eta in case.etas]
    exits = [fp.mean_exit_time(other, start=worse) for other in others]
    times, errors = (np.array(v) for v in zip(*((t.at(worse)[0], t.error[0]) for t in exits), strict=True))
    first, second = (moment.at(worse)[0] for moment in fp.exit_time_moments(others[0], 2))
    spread = np.sqrt(second - first**2) / first
    return exits[case.etas.index(case.eta)], times, errors, spread, study_paths(case, process, basin, worse)


def study_paths(case, process, basin, worse):
    """Mean exit times of paths in steps of SGD, with half of their 95 % intervals.

    Paths of the diffusion leave the basin too early by an error of first order in their step, which extrapolation from
    two steps removes.
    """
    process = replace(process, learning_rate=case.compared)
    options = {"absorbing": "separatrix", "paths": 2048, "seed": 3}
    runs = [fp.simulate(process, basin, worse, step=case.compared / n, **options) for n in (4, 16)]
    coarse, fine = (run.mean_exit_time() for run in runs)
    sde = (4 * fine.value - coarse.value) / 3, np.hypot(4 * fine.error, coarse.error) / 3
    sgd = fp.simulate(process, basin, worse, method="sgd", **options).mean_exit_time()
    return {"diffusion": np.array(sde) / case.compared, "SGD itself": np.array([sgd.value, sgd.error]) / case.compared}


# # Pictures


def draw_case(case, r):
    """The three answers side by side."""
    early = len(r["early"]) // 3
    at_minimum = r["times"][case.etas.index(case.eta)] / case.eta
    in_steps = r["tau"].function.copy()
    in_steps.x.array[:] /= case.eta
    x, y = (np.linspace(a + 1e-9, b - 1e-9, 200) for a, b in zip(case.low, case.high, strict=True))
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    densities = [p.at(grid.reshape(-1, 2)).reshape(200, 200) for p in (r["flow"][early], r["limit"])]
    figure, panels = None, [None] * 3
    if comm.rank == 0:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(16, 4.6), layout="constrained")
        panels = figure.subplots(1, 3, width_ratios=(1.0, 1.18, 1.0))
        z = case.a * grid[..., :1] + grid[..., 1:]
        loss = ((np.sin(z) - case.y) ** 2).mean(axis=-1) / 2 + LAMBDA / 2 * (grid**2).sum(axis=-1)
        levels = np.linspace(loss.min(), loss.min() + 4 * (r["saddle"].value - loss.min()), 33)
        panels[0].contour(x, y, loss, levels=levels, colors="0.75", linewidths=0.6)
        for p, colours in zip(densities, ("Oranges", "Blues"), strict=True):
            shades = [0.03, 0.1, 0.25, 0.5, 0.75, 1.0]
            panels[0].contourf(x, y, p / p.max(), levels=shades, cmap=colours, vmin=-0.3, vmax=1)
        panels[0].plot(*r["path"].T, color="C3", lw=1.5)
        panels[0].plot(*case.start, "o", color="C3", ms=5)
        panels[0].set_title(f"1, 3. Density after {r['steps'][early]:.0f} steps (orange), in the end (blue)")
        draw_masses(panels[2], case, r, at_minimum)
        figure.suptitle(f"SGD on the loss of a single neuron: {case.name}, learning rate {case.eta}", fontsize=14)
    fp.plot.field(
        in_steps, panels[1], label="mean number of steps until exit", limits=(0, 1.15 * at_minimum), contours=7
    )
    if comm.rank == 0:
        panels[1].set_title("2. Mean exit time from the worse basin")
        names = (("worse\nminimum", r["worse"], (0, -34)), ("better\nminimum", r["better"], (0, -34)))
        for ax in panels[:2]:
            ax.plot(*r["edge"].T, "k--", lw=1.3)
            ax.plot(*np.transpose((r["worse"], r["better"])), "k+", ms=8)
            ax.plot(*r["saddle"].point, "kx", ms=7)
            ax.set(xlim=(case.low[0], case.high[0]), ylim=(case.low[1], case.high[1]), aspect="equal")
            ax.set(xlabel="weight w₀", ylabel="bias w₁")
        for text, point, offset in (*names, ("start", case.start, (0, 7)), ("saddle", r["saddle"].point, (27, -4))):
            ax = panels[int(text == "saddle")]
            ax.annotate(text, point, xytext=offset, textcoords="offset points", fontsize=9, ha="center", va="bottom")
    fp.plot.save(figure, OUTPUT / f"neuron_{case.tag}.png")


def draw_masses(ax, case, r, exit_steps):
    for k, name in enumerate(("worse", "better")):
        mass, error = r["mass"][1:, k], r["error"][1:, k]
        ax.semilogx(r["steps"][1:], mass, f"C{1 - k}", label=f"near the {name} minimum")
        ax.fill_between(r["steps"][1:], mass - error, mass + error, color=f"C{1 - k}", alpha=0.3, lw=0)
        found = r["sgd"][k][1:]
        values, bars = [e.value for e in found], [e.error for e in found]
        ax.errorbar(r["early"][1:], values, bars, fmt="k.", ms=4, capsize=2, label=None if k else "SGD itself")
    ax.axvline(exit_steps, color="0.5", ls=":")
    ax.text(exit_steps, 1.0, f"mean exit time\n{exit_steps:.0f} steps ", ha="right", va="top", fontsize=9)
    ax.set(xlabel="steps of SGD", ylabel="probability", ylim=(-0.02, 1.02), title="1, 3. Where the mass is")
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=3, columnspacing=1, fontsize=9)


def draw_exit_times(results):
    """ln τ against 1/η: a straight line is an exponential law with a barrier."""
    figure = None
    if comm.rank == 0:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.8, 4.8), layout="constrained")
        ax = figure.subplots()
        for i, (case, r) in enumerate(results):
            eta = np.array(case.etas)
            ax.plot(1 / eta, r["times"] / eta, f"C{i}.-", label=f"{case.name}: PDE", ms=9)
            for (name, found), mark in zip(r["paths"].items(), "s^", strict=True):
                label = f"{case.name}: {name if mark == '^' else 'paths of the diffusion'}"
                ax.errorbar(1 / case.compared, *found, fmt=f"C{i}{mark}", mfc="none", ms=9, capsize=3, label=label)
        ax.set(xlabel="1 / learning rate", ylabel="mean number of steps until exit", yscale="log", ylim=(40, None))
        ax.set_title("Exit from the worse minimum's basin (95 % intervals)")
        ax.legend(fontsize=9, loc="lower right")
    fp.plot.save(figure, OUTPUT / "neuron_exit_times.png")


# # All of it


def study(case):
    process = fp.SGD(loss=None, noise=fp.PerSample(case.losses()), learning_rate=case.eta)
    points = diagnostics.critical_points(process, fp.Domain.rectangle(case.low, case.high, case.cells))
    better, worse = (c.point for c in points if c.kind == "minimum")
    saddle = min((c for c in points if c.kind == "saddle"), key=lambda c: c.value)
    flow = solve_ivp(lambda t, w: -case.gradient(w), (0, 30), case.start, rtol=1e-6, max_step=0.1)
    edge = separatrix(case, saddle)
    tau, times, errors, spread, paths = study_escape(case, process, edge, worse)
    r = {"better": better, "worse": worse, "saddle": saddle, "path": flow.y.T, "edge": edge}
    r |= {"tau": tau, "times": times, "errors": errors, "spread": spread, "paths": paths}
    r |= study_masses(case, process, worse, better)
    draw_case(case, r)
    return r


def report(case, r):
    print(f"\n{case.name}, learning rate {case.eta}\n\n{r['landscape']}\n")
    print(f"1. drift   steps   mass within {RADIUS} of the worse minimum   SGD itself")
    for k in (2, 5, 10, 15):
        print(f"     {r['early'][k]:11} {r['mass'][k, 0]:20.4f} ± {r['error'][k, 0]:.0e}   {r['sgd'][0][k]!s:>25}")
    print(f"2. escape  deviation over mean {r['spread']:.4f} at learning rate {case.etas[0]}")
    print("           learning rate   mean number of steps")
    for eta, time, error in zip(case.etas, r["times"], r["errors"], strict=True):
        print(f"     {eta:19.2f} {time / eta:15.2f} ± {error / eta:.1e}")
    for name, (value, error) in r["paths"].items():
        print(f"           {name + ', by paths':26} {value:8.1f} ± {error:.1f} at learning rate {case.compared}")
    (worse, better), (e, f) = r["mass"][-1], r["error"][-1]
    print(f"3. limit   {worse:.4f} ± {e:.0e} near the worse minimum, {better:.4f} ± {f:.0e} near the better one;")
    exit_time = r["times"][case.etas.index(case.eta)] / case.eta
    relaxation = 1 / r["rate"] / case.eta
    print(f"           relaxation within {relaxation:.0f} steps, mean exit after {exit_time:.0f}", flush=True)


def check(case, r):
    """What the text above claims."""
    drift = r["steps"] <= EARLY
    assert np.abs(r["flow"].mass - 1).max() < 1e-8, "mass is conserved"
    assert r["mass"][drift, 0].max() > 0.85, "the law arrives at the worse minimum"
    sgd = np.array([e.value for e in r["sgd"][0]])
    assert np.abs(r["mass"][np.isin(r["steps"], r["early"]), 0] - sgd).max() < 0.15, "and so does SGD, as fast"
    assert abs(r["spread"] - 1) < 0.01, "rare exits are exponentially distributed"
    tau = r["times"][case.etas.index(case.eta)]
    assert (np.diff(r["times"]) < 0).all() and (r["errors"] < 2e-3 * r["times"]).all()
    steps = r["times"][case.etas.index(case.compared)] / case.compared
    (value, error), (sgd, interval) = r["paths"].values()
    assert abs(value - steps) < 1.5 * error, "paths of the diffusion agree"
    assert 2 < (sgd - interval) / steps < (sgd + interval) / steps < 12, "SGD itself stays two to ten times longer"
    assert 0.4 < r["rate"] * tau < 1, "paths that reach the separatrix may fall back, but not most of them"
    (worse, better), (error, _) = r["mass"][-1], r["error"][-1]
    assert better > 0.8, "in the end most of it is at the better minimum"
    if len(case.a) > 2:
        assert error < 1e-3 and 0.03 < worse < 0.06
    else:
        assert abs(worse) < error, "what is left in the worse basin is below what is resolved"
    edges = [np.linspace(a, b, 400) for a, b in zip(case.low, case.high, strict=True)]
    bottom_top = [np.column_stack((edges[0], np.full(400, y))) for y in (case.low[1], case.high[1])]
    sides = [np.column_stack((np.full(400, x), edges[1])) for x in (case.low[0], case.high[0])]
    densities = [r["limit"].at(wall).mean() for wall in (*bottom_top, *sides)]
    assert max(densities) < 1e-5, "the box is large enough: next to nothing is at its walls"


def main():
    results = [(case, study(case)) for case in CASES]
    draw_exit_times(results)
    for case, r in results:
        if comm.rank == 0:
            report(case, r)
        check(case, r)


if __name__ == "__main__":
    main()
