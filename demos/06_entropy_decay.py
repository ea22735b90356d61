r"""Entropy decay for three noises: in every direction, in one direction, and on velocities only.

Convergence to an invariant density p∞ is measured by the relative entropy H = ∫ p ln(p/p∞), which decays for every
drift and every diffusion matrix D ≥ 0:

    dH/dt = −I_D,        I_D = ∫ p ∇ln h · D ∇ln h,        h = p/p∞.

Three processes dX = −C X dt + √(2D) dW have the standard normal law in the plane as their invariant one:

    overdamped    C = 1,                  D = 1                  gradient descent with noise in every direction
    rank one      C = [[0, −w], [w, 1]],  D = diag(0, 1), w = 3  noise in one direction, that a rotation distributes
    kinetic       C = [[0, −1], [1, 1]],  D = diag(0, 1)         momentum: x' = v, noise and friction on v only

For the first, ∇∇V ≥ λ D⁻¹ with λ = 1 gives H(t) ≤ e^{−2t} H(0) (Bakry and Émery).  For the others D is degenerate, and
H has plateaus: whenever ∇ln h points into the kernel of D, nothing is dissipated.  No inequality I_D ≥ 2λH holds, yet
the process converges.  With P > 0 such that C* P + P C*ᵀ ≥ 2μP the functional

    S_P = ∫ p ∇ln h · P ∇ln h  ≤  e^{−2μt} S_P(0),        μ = min Re spec C

decays without plateaus, and H ≤ c S_P (Arnold and Erb, arXiv:1409.5425).  Started from the normal law shifted to (1, 0)
all of this is explicit: H = |m|²/2, I_D = m·Dm and S_P = m·Pm with m(t) = e^{−Ct} (1, 0).

Run it (some ten seconds) with

    mpirun -n 2 python3 demos/06_entropy_decay.py
"""

# # Processes
#
# Each lives on an ellipse {x·Qx < 39} with Cᵀ Q + Q C > 0: the drift points inwards everywhere on its boundary, so that
# reflecting walls are no matter where there is no noise across them.

from pathlib import Path

from mpi4py import MPI

import numpy as np
import ufl
from scipy.linalg import expm, solve_continuous_lyapunov

import fpsolver as fp
from fpsolver import diagnostics

OUTPUT = Path(__file__).parent / "output"
START = np.array([1.0, 0.0])
TIMES = np.linspace(0.0, 5.0, 26)

CASES = {
    "overdamped": (np.eye(2), np.eye(2)),
    "rank one": (np.array([[0.0, -3.0], [3.0, 1.0]]), np.diag([0.0, 1.0])),
    "kinetic": (np.array([[0.0, -1.0], [1.0, 1.0]]), np.diag([0.0, 1.0])),
}


def ellipse(C):
    Q = solve_continuous_lyapunov(C.T, np.eye(2))
    Q /= np.linalg.eigvalsh(Q)[-1]  # the shorter half axis is 6.2
    shape = 6.2 * np.linalg.inv(np.linalg.cholesky(Q)).T
    return fp.Domain.disk((0, 0), 1.0, 0.14).mapped(lambda x: shape @ x)


def p_inf(x):
    return ufl.exp(-(x[0] ** 2 + x[1] ** 2) / 2)


# # Solutions
#
# `arnold_erb_matrix` checks that no eigenvector of Cᵀ lies in the kernel of D, and computes P.

found = {}
for name, (C, D) in CASES.items():
    process = fp.SDE(
        drift=lambda x, C=C: tuple(-C[i, 0] * x[0] - C[i, 1] * x[1] for i in range(2)), diffusion=tuple(map(tuple, D))
    )
    gen = fp.Generator(process, ellipse(C), degree=4)
    flow = fp.evolve(gen, fp.gaussian(START, 1.0), TIMES, time_rtol=1e-8)
    erb = diagnostics.arnold_erb_matrix(C, D)
    decay = diagnostics.entropy_decay(flow, p_inf, P=erb.P)
    mean = np.array([expm(-C * t) @ START for t in TIMES])
    exact = [0.5 * (mean**2).sum(axis=1), *(np.einsum("ti,ij,tj->t", mean, A, mean) for A in (D, erb.P))]
    found[name] = (gen, erb, decay, exact, diagnostics.spectral_gap(gen))
curvature = diagnostics.bakry_emery(found["overdamped"][0], potential=lambda x: (x[0] ** 2 + x[1] ** 2) / 2)

# # Picture
#
# Above, entropy with its bound and the modified functional; below, the dissipation I_D, whose zeros are the plateaus.


def draw():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, sharex=True, sharey="row", height_ratios=(2, 1))
    for (name, (_, erb, decay, exact, _)), (top, bottom) in zip(found.items(), axes.T, strict=True):
        bound = erb.entropy_bound(TIMES, decay.modified[0])
        top.semilogy(TIMES, bound, color="0.6", ls="--", label="bound c $S_P(0)\\,e^{-2\\mu t}$ of H")
        top.semilogy(TIMES, decay.modified, color="C1", label="modified functional $S_P$")
        top.semilogy(TIMES, decay.entropy, color="C0", lw=2, label="entropy H")
        top.semilogy(TIMES[::2], exact[0][::2], "k.", ms=5, label="closed form of H")
        top.set(title=f"{name}: 2μ = {erb.rate:.3g}", ylim=(1e-4, 3))
        bottom.semilogy(TIMES, np.maximum(decay.fisher, 1e-12), color="C3", label="$-dH/dt = I_D$")
        bottom.semilogy(TIMES[::2], np.maximum(exact[1][::2], 1e-12), "k.", ms=4)
        bottom.set(xlabel="time", ylim=(1e-4, 3))
        for ax in (top, bottom):
            ax.grid(alpha=0.3)
    axes[0, 0].legend(loc="lower left", fontsize=9)
    axes[1, 0].legend(loc="lower left", fontsize=9)
    axes[0, 0].set_ylabel("distance from equilibrium")
    axes[1, 0].set_ylabel("dissipation")
    return figure


fp.plot.save(draw() if MPI.COMM_WORLD.rank == 0 else None, OUTPUT / "entropy_decay.png")

# # Table and claims

if MPI.COMM_WORLD.rank == 0:
    print("process        2 mu  spectral gap   H(1)      exact     slowest -d ln H/dt  of S_P  balance   neglected")
    for name, (_, erb, decay, exact, gap) in found.items():
        row = (erb.rate, gap, decay.entropy[5], exact[0][5], decay.rate[:11].min(), decay.modified_rate[:10].min())
        print(f"{name:12} " + " ".join(f"{v:10.6f}" for v in row), end="")
        print(f"  {np.abs(decay.balance).max():.1e} {decay.neglected.max():.1e}")

assert curvature.holds, "the Bakry-Émery condition"
assert abs(curvature.bound - 1) < 1e-9
for name, (_, erb, decay, exact, gap) in found.items():
    assert np.abs(decay.entropy - exact[0]).max() < 1e-4
    assert np.abs(decay.fisher - exact[1]).max() < 5e-4
    assert np.abs(decay.modified - exact[2]).max() < 5e-4
    assert np.abs(decay.balance).max() < 2e-4, "dH/dt + I_D = 0 without a difference in time"
    assert abs(2 * gap - erb.rate) < 1e-2, "twice the spectral gap is the rate of S_P"
    assert (decay.entropy <= erb.entropy_bound(TIMES, decay.modified[0]) + 1e-4).all()
    assert (decay.modified_rate[:10] > 0.98 * erb.rate).all(), "S_P has no plateaus"
    if name != "overdamped":
        assert decay.rate[0] < 1e-3, "H has: at first the noise sees nothing"
assert (found["overdamped"][2].rate[:11] > 2 * curvature.bound - 1e-2).all()
