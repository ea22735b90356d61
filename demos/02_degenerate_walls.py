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

and τ(1/2, 0) = 1.155979148508.  Near the points (0, 0) and (1, 0) it is like x^{1/6}, for which the mesh is graded.

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
from scipy.special import gamma, hyp2f1

import fpsolver as fp

OUTPUT = Path(__file__).parent / "output"
SPEED = 6.0


def graded(nx, nv):
    domain = fp.Domain.rectangle((0.0, -1.0), (1.0, 1.0), (nx, nv), diagonal="right")
    x = domain.mesh.geometry.x
    s = 2 * x[:, 0] - 1
    x[:, 0] = 0.5 + 0.5 * np.sign(s) * (1 - (1 - np.abs(s)) ** 3)
    x[:, 1] = SPEED * np.sign(x[:, 1]) * np.abs(x[:, 1]) ** 2
    return domain


def exact(x):
    def f(z):
        return hyp2f1(1, -1 / 3, 7 / 6, z)

    c = 3 ** (11 / 6) * 2 ** (-5 / 3) / gamma(1 / 3)
    return c * (x * (1 - x)) ** (1 / 6) * (f(x) + f(1 - x))


# # Process, boundary and exit time

process = fp.SDE(drift=lambda x: (x[1], 0), diffusion=((0, 0), (0, 1.0)))
gen = fp.Generator(process, graded(24, 32), absorbing=["left", "right"])
report = gen.boundary_report()
tau = fp.mean_exit_time(gen)

points = np.array([(x, 0.0) for x in (0.5, 0.25, 0.1, 0.01)])
values, closed = tau.at(points), exact(points[:, 0])

# # Picture
#
# Where the walls take data they are drawn in red, where nothing can be imposed in grey.

shown = 2.5  # velocities
figure = fp.plot.field(tau, label="mean exit time", axes=("position x", "velocity v"), contours=9)
if MPI.COMM_WORLD.rank == 0:
    ax = figure.axes[0]
    for x, takes, free in ((0, (-shown, 0), (0, shown)), (1, (0, shown), (-shown, 0))):
        ax.plot((x, x), takes, color="C3", lw=6, solid_capstyle="butt", clip_on=False, label="takes data: τ = 0")
        ax.plot((x, x), free, color="0.8", lw=6, solid_capstyle="butt", clip_on=False, label="takes none")
    arrow = {"arrowstyle": "->", "color": "white", "lw": 1.5}
    for x, v in ((0.35, 1.6), (0.65, -1.6)):
        ax.annotate("", (x + 0.18 * np.sign(v), v), (x, v), arrowprops=arrow)
    ax.set(ylim=(-shown, shown), aspect="auto", title="Exit of a randomly accelerated particle\n\n")
    handles, names = ax.get_legend_handles_labels()
    ax.legend(handles[:2], names[:2], loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9, frameon=False)
fp.plot.save(figure, OUTPUT / "degenerate_walls.png")
fp.io.write(OUTPUT / "degenerate_walls.bp", tau)

# # Table and claims

if MPI.COMM_WORLD.rank == 0:
    print(f"scheme {gen.scheme}, degree {gen.degree}, {tau.stats['unknowns']} unknowns\n")
    print("part     diffusive   outflow    inflow   (length; data belong on the first two)")
    for part, c in report.items():
        print(f"{part:8} {c.diffusive:9.3f} {c.outflow:9.3f} {c.inflow:9.3f}")
    print("\n   x   exit time  closed form      error")
    for (x, _), value, true in zip(points, values, closed, strict=True):
        print(f"{x:5.2f} {value:10.6f} {true:12.6f} {value / true - 1:10.1e}")

for wall in ("left", "right"):
    assert report[wall].diffusive == 0
    assert abs(report[wall].outflow - SPEED) < 1e-9, "one half of the wall takes data"
    assert abs(report[wall].inflow - SPEED) < 1e-9, "the other takes none"
assert abs(closed[0] - 1.155979148508) < 1e-11
assert np.abs(values / closed - 1)[:3].max() < 1e-5, "away from the singular points"
assert abs(values[3] / closed[3] - 1) < 5e-4, "close to such a point"
