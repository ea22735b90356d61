r"""A boundary that takes data on half of each wall: the exit of a randomly accelerated particle.

A particle between two walls at x = 0 and x = 1 is accelerated by white noise (Kolmogorov's process),

    dX = V dt,        dV = √2 dW,

as momentum SGD without friction on a flat loss.  The noise acts on V alone: D = diag(0, 1) is degenerate, and at both
walls n·Dn = 0.  There the particle arrives only with the velocity that leads out, so that the mean exit time solves

    v ∂ₓτ + ∂ᵥᵥτ = −1,        τ = 0 on {x = 1, v > 0} and {x = 0, v < 0} only,

and nothing may be imposed on the other halves of the walls.  This is Fichera's (1956) rule: data belong where n·Dn > 0,
or where n·Dn = 0 and β·n > 0.  fpsolver applies it pointwise; to declare the walls absorbing is all there is to do.
The solution is known in closed form on v = 0 (found like that of Franklin and Rodemich, 1968),

    τ(x, 0) = C [x(1 − x)]^{1/6} [F(x) + F(1 − x)],   F(x) = ₂F₁(1, −1/3; 7/6; x),   C = 3^{11/6} 2^{−5/3} / Γ(1/3),

and τ(1/2, 0) = 1.155979148508.  The probability of leaving at x = 1 solves the homogeneous equation with data 1 there;
on v = 0 it is the incomplete beta function I_x(1/6, 1/6) (Bicout and Burkhardt, 2000).  Near the points (0, 0) and
(1, 0) both are like x^{1/6}, for which the mesh is graded.

Run it (a few seconds) with

    mpirun -n 2 python3 demos/02_degenerate_walls.py
"""

# # Mesh
#
# A rectangle whose nodes are moved towards the two points where the walls stop taking data.  At |v| = 6 the particle
# is out within 1/6 time units; the far sides, which reflect, have no influence.

from pathlib import Path

from mpi4py import MPI

import numpy as np
from scipy.special import betainc, gamma, hyp2f1

import fpsolver as fp

OUTPUT = Path(__file__).parent / "output"
SPEED = 6.0


def graded(nx, nv):
    square = fp.Domain.rectangle((-1.0, -1.0), (1.0, 1.0), (nx, nv), diagonal="right")
    return square.mapped(
        lambda x: (0.5 + 0.5 * np.sign(x[0]) * (1 - (1 - np.abs(x[0])) ** 3), SPEED * np.sign(x[1]) * np.abs(x[1]) ** 2)
    )


def exact(x):
    def f(z):
        return hyp2f1(1, -1 / 3, 7 / 6, z)

    c = 3 ** (11 / 6) * 2 ** (-5 / 3) / gamma(1 / 3)
    return c * (x * (1 - x)) ** (1 / 6) * (f(x) + f(1 - x))


# # Process, boundary, exit time and side of exit

process = fp.SDE(drift=lambda x: (x[1], 0), diffusion=((0, 0), (0, 1.0)))
gen = fp.Generator(process, graded(24, 32), absorbing=["left", "right"])
report = gen.boundary_report()

points = np.array([(x, 0.0) for x in (0.5, 0.25, 0.1, 0.01)])
tau = fp.mean_exit_time(gen, start=points)
values, bars, closed = tau.at(points), tau.error, exact(points[:, 0])
side = fp.exit_probability(gen, to=["right"], start=points)
chances, side_bars, beta = side.at(points), side.error, betainc(1 / 6, 1 / 6, points[:, 0])

# # Picture
#
# Thick where the walls take data, hatched where nothing can be imposed: there the solution has values of its own.

TAKES, FREE = "#D55E00", "#56B4E9"
shown = 2.5  # velocities


def draw_walls(ax):
    half = {"width": 0.035, "clip_on": False, "zorder": 5}
    for x, sign in ((-0.035, -1), (1.0, 1)):  # data where v leads out: sign·v > 0
        ax.add_patch(Rectangle((x, min(0, sign * shown)), height=shown, color=TAKES, lw=0, **half))
        free = {"facecolor": "white", "edgecolor": FREE, "hatch": "/////", "lw": 0}
        ax.add_patch(Rectangle((x, min(0, -sign * shown)), height=shown, **free, **half))
    for start, end, v, arrow in (
        (0.8, 0.99, 1.9, OUT),
        (0.2, 0.01, -1.9, OUT),
        (0.01, 0.2, 1.9, IN),
        (0.99, 0.8, -1.9, IN),
    ):
        ax.annotate("", (end, v), (start, v), arrowprops=arrow)
    ax.set(xlim=(0, 1), ylim=(-shown, shown), aspect="auto")
    ax.tick_params(axis="y", length=0, pad=20)  # beyond the walls


if MPI.COMM_WORLD.rank == 0:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    OUT = {"arrowstyle": "-|>", "color": TAKES, "lw": 2.5, "mutation_scale": 16}
    IN = {**OUT, "color": FREE}
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
else:
    figure, panels = None, (None, None)
names = ("position x (distances of the walls)", "velocity v (distances per unit of time)")
fp.plot.field(tau, panels[0], label="mean exit time τ (units of time)", axes=names, contours=9, cmap="cividis")
fp.plot.field(side, panels[1], label="probability of leaving at x = 1", axes=names, contours=9, cmap="cividis")
if figure is not None:
    for ax in panels:
        draw_walls(ax)
    panels[0].set_title("Mean exit time")
    panels[1].set(title="Side of exit", ylabel="")
    takes = Patch(color=TAKES, label="takes data: paths leave (τ = 0; probability 0 or 1)")
    free = Patch(facecolor="white", edgecolor=FREE, hatch="/////", label="takes none: paths can only enter")
    figure.legend(handles=[takes, free], loc="outside lower center", ncols=2, frameon=False)
fp.plot.save(figure, OUTPUT / "degenerate_walls.png")
fp.io.write(OUTPUT / "degenerate_walls.bp", tau)

# # Table and claims

if MPI.COMM_WORLD.rank == 0:
    print(f"scheme {gen.scheme}, degree {gen.degree}, {tau.stats['unknowns']} unknowns\n")
    print("part     diffusive   outflow    inflow   (length; data belong on the first two)")
    for part, c in report.items():
        print(f"{part:8} {c.diffusive:9.3f} {c.outflow:9.3f} {c.inflow:9.3f}")
    for title, rows in (
        ("exit time", (values, bars, closed)),
        ("leaves at x = 1", (chances, side_bars, beta)),
    ):
        print(f"\n   x  {title:>15} ± error bar  closed form      error")
        for (x, _), value, bar, true in zip(points, *rows, strict=True):
            print(f"{x:5.2f} {value:15.8f} ± {bar:7.1e} {true:14.8f} {value - true:10.1e}")

for wall in ("left", "right"):
    assert report[wall].diffusive == 0
    assert abs(report[wall].outflow - SPEED) < 1e-9, "one half of the wall takes data"
    assert abs(report[wall].inflow - SPEED) < 1e-9, "the other takes none"
assert abs(closed[0] - 1.155979148508) < 1e-11
assert np.abs(values / closed - 1)[:3].max() < 1e-5, "away from the singular points"
assert abs(values[3] / closed[3] - 1) < 5e-4, "close to such a point"
assert np.abs(chances / beta - 1)[:3].max() < 1e-5 and abs(chances[3] / beta[3] - 1) < 5e-4
for found, bar, true in ((values, bars, closed), (chances, side_bars, beta)):
    off = np.abs(found - true)
    assert (off <= bar + 1e-12)[:3].all(), "the closed forms are within the error bars"
    assert off[3] < 1.25 * bar[3], "which are estimates, close to such a point a little small"
