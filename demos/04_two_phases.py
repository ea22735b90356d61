r"""The two phases of SGD on one landscape: drift first, diffusion much later.

With learning rate η, SGD on a loss f with gradient noise Σ is to first order the diffusion

    dX = −∇f(X) dt + √(η Σ) dW,        D = (η/2) Σ,        one step = time η.

**Drift.**  In a ball around a minimum x*, with λ = inf (x − x*)·∇f/|x − x*|² and S = sup tr Σ, Itô's formula for
|X − x*|² gives

    m₂(t) = E|X_t − x*|²  ≤  e^{−2λt} m₂(0) + (ηS/2λ)(1 − e^{−2λt})

for the process killed on leaving the ball, whatever the rank of Σ: within a time of order 1/λ the law concentrates to
width √(ηS/2λ).  From any other place the gradient flow rules first, and hardly any mass changes its basin.

**Diffusion.**  When the loss no longer falls at the rate of the flow, E D:∇∇f has come up to E|∇f|², and mass moves
between basins only by escapes over the barrier, in times of order e^{2Δf/η}.

The landscape is the tilted double well f = (x² − 1)²/4 + x/10 + y²/2, whose better minimum is on the left.  SGD starts
far up, in the basin of the worse one.

Run it (some ten seconds) with

    mpirun -n 2 python3 demos/04_two_phases.py
"""

# # Evolution
#
# Two generators: SGD in the plane, and, with a quarter of the learning rate, SGD killed on leaving a disk around the
# worse minimum, for which the bound is a theorem.

from pathlib import Path

from mpi4py import MPI

import numpy as np

import fpsolver as fp
from fpsolver import diagnostics

OUTPUT = Path(__file__).parent / "output"
ETA = 0.08
R = 0.45

landscape = fp.landscapes.tilted_well_2d
better, worse = landscape.minima
sgd = fp.SGD(landscape, fp.Isotropic(1.0), ETA)
gen = fp.Generator(sgd, fp.Domain.rectangle((-1.9, -1.2), (1.9, 1.8), (15, 12)))
start = fp.gaussian((0.65, 1.0), 0.14)
times = np.concatenate([[0.0], np.geomspace(0.05, 2000.0, 60)])
flow = fp.evolve(gen, start, times, time_rtol=1e-7)
found = diagnostics.concentration(flow, [worse, better], radius=0.5)

slower = sgd.with_parameters(learning_rate=ETA / 4)
disk = fp.Generator(slower, fp.Domain.disk(worse, R, 0.15), absorbing=["boundary"])
killed = fp.evolve(disk, fp.gaussian((worse[0] + 0.2, 0.25), 0.04), np.linspace(0, 3, 13), time_rtol=1e-7)
local = diagnostics.concentration(killed, worse, radius=0.3, attraction=1.001 * R, basins=False)

end = found.drift_regime_end
escape = fp.mean_exit_time(
    fp.Generator(sgd, fp.Domain.rectangle((0.101031257881011, -1.2), (1.9, 1.8), (10, 12)), ["left"])
)

# # Picture
#
# The density at six times with the circle in which mass is counted; below, the masses on a logarithmic time axis,
# with the end of the drift regime, and the second moment with its bound.

shown = [int(np.argmin(np.abs(times - t))) for t in (0.0, 0.4, 1.0, 3.0, 200.0, 2000.0)]


def draw_masses(figure, masses, moments):
    masses.semilogx(times[1:], found.ball_mass[1:, 0, 0], color="C0", label="within 0.5 of the worse minimum")
    masses.semilogx(times[1:], found.basin_mass[1:, 0], color="C0", ls="--", label="in its basin of attraction")
    masses.semilogx(times[1:], found.ball_mass[1:, 1, 0], color="C1", label="within 0.5 of the better minimum")
    masses.semilogx(times[1:], found.basin_mass[1:, 1], color="C1", ls="--", label="in its basin of attraction")
    masses.axvline(end, color="0.4", lw=1)
    masses.annotate(" end of the drift regime", (end, 1.04), color="0.3", fontsize=9)
    masses.set(xlabel="time = η · steps", ylabel="mass", ylim=(0, 1.12), xlim=(times[1], times[-1]))
    masses.legend(fontsize=8, loc="center", bbox_to_anchor=(0.5, 0.5))
    moments.plot(local.times, local.moment_bound[:, 0], color="0.5", ls="--", label="bound, λ and S measured")
    moments.plot(local.times, local.local_moment[:, 0], color="C0", label=f"killed at distance {R}, η = {ETA / 4:.3g}")
    moments.set(xlabel="time", ylabel="second moment about the minimum", ylim=(0, None), xlim=(0, 3))
    moments.legend(fontsize=8)


def draw():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 6, height_ratios=(1, 1.7))
    strip = [figure.add_subplot(grid[0, i]) for i in range(6)]
    draw_masses(figure, figure.add_subplot(grid[1, :4]), figure.add_subplot(grid[1, 4:]))
    return figure, strip


figure, strip = draw() if MPI.COMM_WORLD.rank == 0 else (None, [None] * 6)
for ax, i in zip(strip, shown, strict=True):
    fp.plot.field(flow[i], ax=ax, cmap="magma_r", title=f"t = {round(times[i], 1):g}", label="")
if figure is not None:
    for ax in strip:  # each density has a scale of its own, and there is no room for six colour bars
        ax.collections[0].colorbar.remove()
    x, y = np.meshgrid(np.linspace(-1.9, 1.9, 120), np.linspace(-1.2, 1.8, 100))
    for ax in strip:
        ax.contour(x, y, landscape((x, y)), levels=np.arange(-0.1, 1.2, 0.1), colors="0.4", linewidths=0.4)
        for point, colour in ((worse, "C0"), (better, "C1")):
            angle = np.linspace(0, 2 * np.pi, 90)
            ax.plot(point[0] + 0.5 * np.cos(angle), point[1] + 0.5 * np.sin(angle), color=colour, lw=1)
        ax.set(xlabel="", ylabel="", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
fp.plot.save(figure, OUTPUT / "two_phases.png")

# # Table and claims

tau = escape.at([worse])[0]
if MPI.COMM_WORLD.rank == 0:
    c = local.contraction[0]
    print(f"in the disk, η = {ETA / 4:.3g}: λ = {c.pull:.4f}, ηS = {c.noise:.3f}")
    print("second moment / bound: " + " ".join(f"{v:.2f}" for v in local.local_moment[:, 0] / local.moment_bound[:, 0]))
    print(
        f"end of the drift regime t = {end:.3f}, mean escape time {tau:.1f}; in steps {end / ETA:.0f}, {tau / ETA:.0f}"
    )
    print("\n      t   mean loss   drift rate   diffusion   near worse   near better   basin of worse")
    for i in shown:
        row = (found.mean_loss[i], found.drift_rate[i], found.diffusion_rate[i], *found.ball_mass[i, :, 0])
        print(f"{times[i]:7.3g}" + " ".join(f"{v:11.5f}" for v in (*row, found.basin_mass[i, 0])))
    print(f"\nestimated errors: balls {found.ball_error:.1e}, basins {found.basin_error:.1e}")

assert (local.local_moment <= local.moment_bound + 1e-9).all(), "the bound holds for the killed process"
assert local.local_moment[4, 0] > 0.4 * local.moment_bound[4, 0], "and is of the right size"
assert found.basin_mass[0, 0] > 0.99
after = int(np.argmin(np.abs(times - 3.0)))
assert found.ball_mass[after, 0, 0] > 0.75, "concentrated after three time units"
assert found.basin_mass[after, 0] > 0.9, "in the basin it started from"
assert found.basin_mass[-1, 1] > 0.9, "in the end the better minimum has nearly all"
assert 20 * end < tau, "the two phases are far apart"
