r"""Noisy SGD: which answers survive when isotropic noise δ is taken away, and how fast they come.

Two samples, f₁ = x²/2 and f₂ = (2x − 1)²/2, have the same gradient at x = 2/3, where the mean gradient still points
down.  There the noise of SGD vanishes: a gate through which the parameter can only fall.  With y = 2/3 − x and learning
rate η, batches of one sample give

    dY = (2/3 − 5Y/2) dt + (3/2)√η Y dW,        D = (9/8) η y²,

whose invariant law is an inverse gamma law on y > 0.  Noisy SGD adds √(2δ) dB, so that D becomes (9/8) η y² + δ.  Along
δ → 0, with s² = 9η/4 = 0.225, m = 2/3 and k = 5/2,

    E Y = m/k for every δ;     E Y² = (2m²/k + 2δ)/(2k − s²): of order one in δ;
    P(Y < 0) → 0 faster than every power of δ;
    Wasserstein distances to ρ₀ are O(√δ) in general (by coupling), and here smaller, as ρ₀ has a smooth density;
    the mean time to climb through the gate grows beyond every bound: at δ = 0 it is infinite.

The order 1/2 is that of laws without density: when the gradient noise is switched off, all falls into the minimum
x = 0.4, and the W₁ distance of N(0.4, 2δ/5) from that point is √(4δ/(5π)).

Run it (a few seconds) with

    mpirun -n 2 python3 demos/05_noisy_sgd.py
"""

# # One generator, a sequence of δ
#
# ``fp.Noisy`` adds δ where everyone can see it.  The forms are compiled once; every δ is ``gen.replace(delta=...)``.

from pathlib import Path

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem

import fpsolver as fp

OUTPUT = Path(__file__).parent / "output"
GATE, M, K, S2 = 2 / 3, 2 / 3, 5 / 2, 0.225
DELTAS = np.array([0.04, 0.02, 0.01, 0.005])
CLIMBED = (0.16, 0.08, 0.04, 0.02)

samples = fp.PerSample([lambda x: x[0] ** 2 / 2, lambda x: (2 * x[0] - 1) ** 2 / 2])
sgd = fp.SGD(loss=None, noise=samples, learning_rate=0.1)
domain = fp.Domain.interval(GATE - 3, GATE + 1.5, 180)  # the gate is a vertex
gen = fp.Generator(fp.Noisy(sgd, DELTAS[0]), domain, scheme="dg")
bare = fp.Generator(sgd, domain, scheme="dg")
rho0 = fp.stationary(bare)

# # Moments, the mass behind the gate, the distance to the law without δ


def expectation(p, f):
    form = fem.form(f(ufl.SpatialCoordinate(domain.mesh)) * p.function * ufl.dx(metadata={"quadrature_degree": 8}))
    return domain.comm.allreduce(fem.assemble_scalar(form))


def behind(x):
    return ufl.conditional(ufl.gt(x[0], GATE), 1.0, 0.0)


densities = {0.0: rho0}


def quantities(noisy):
    p = densities[noisy.process.delta] = fp.stationary(noisy)
    moments = [expectation(p, lambda x, n=n: (GATE - x[0]) ** n) for n in (1, 2)]
    return [*moments, expectation(p, behind), fp.wasserstein(p, rho0, order=1)]


known = [M / K, 2 * M * M / K / (2 * K - S2), 0, 0]
found = fp.vanishing_noise_limit(gen, quantities, DELTAS, reference=known)
mean, second, mass, distance = found.values.T

# # The time to climb through the gate has no limit

below = fp.Generator(fp.Noisy(sgd, 0.1), fp.Domain.interval(GATE - 3, GATE, 120), ["right"], scheme="dg")
climb = fp.vanishing_noise_limit(below, lambda noisy: fp.mean_exit_time(noisy).at(0.4)[0], CLIMBED)

# # Without gradient noise the law collapses

still = fp.Noisy(fp.SDE(lambda x: K * (0.4 - x[0]), 0.0), DELTAS[0])
falling = fp.Generator(still, fp.Domain.interval(-0.6, 1.4, 100), scheme="dg")
collapse = fp.vanishing_noise_limit(
    falling, lambda noisy: fp.wasserstein(fp.stationary(noisy), fp.dirac(0.4), order=1), DELTAS, predicted=0.5
)

# # Picture

x = np.linspace(-0.4, 1.1, 400)
curves = {delta: p.at(x) for delta, p in densities.items()}
if MPI.COMM_WORLD.rank == 0:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for i, (delta, curve) in enumerate(sorted(curves.items())):
        left.semilogy(x, np.maximum(curve, 1e-12), color=f"C{i}", label=f"δ = {delta:g}")
    left.axvline(GATE, color="0.6", lw=1)
    left.text(GATE, 12, " gate", color="0.4")
    left.set(ylim=(1e-4, 30), xlabel="x", ylabel="invariant density", title="SGD does not pass, noise δ does")
    left.legend(fontsize=8, loc="upper left")
    lines = (
        (np.abs(second - found.limit[1]), f"E Y², order {found.order[1]:.3f}"),
        (distance, f"W₁ to the law without δ, order {found.order[3]:.2f}"),
        (collapse.values, f"W₁ to the minimum, no Σ, order {collapse.order:.3f}"),
        (mass, "mass behind the gate"),
    )
    for values, label in lines:
        middle.loglog(DELTAS, values, "o-", label=label)
    middle.set(xlabel="δ", ylim=(1e-7, 3), title="Distance to the limit δ = 0")
    middle.legend(fontsize=8, loc="lower right")
    right.loglog(climb.deltas, climb.values, "o-", color="C3")
    right.set(xlabel="δ", ylabel="mean time", title="Time to climb through the gate: no limit")
    for axes, ticks in ((middle, DELTAS), (right, CLIMBED)):
        axes.set_xticks(ticks, [f"{delta:g}" for delta in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    OUTPUT.mkdir(exist_ok=True)
    figure.savefig(OUTPUT / "noisy_sgd.png", dpi=120)

# # Table and claims

if MPI.COMM_WORLD.rank == 0:
    print("    δ         E Y        E Y²    P(Y < 0)  W₁(ρ_δ, ρ₀)  W₁ to the minimum")
    for row in zip(DELTAS, mean, second, mass, distance, collapse.values, strict=True):
        print("{:6.3f} {:11.8f} {:11.8f} {:11.3e} {:12.3e} {:18.6f}".format(*row))
    print(f"limit  {found.limit[0]:11.8f} {found.limit[1]:11.8f}{'':11} ", f"{'':12} {collapse.limit:18.6f}")
    print(f"order  {'':11} {found.order[1]:11.5f} {'':11} {found.order[3]:12.3f} {collapse.order:18.5f}")
    print("\n    δ    time to climb from 0.4")
    for row in zip(climb.deltas, climb.values, strict=True):
        print("{:6.3f} {:15.6g}".format(*row))
    print(climb)

assert np.abs(mean - M / K).max() < 1e-9, "the mean does not see δ"
assert np.abs(second / ((2 * M * M / K + 2 * DELTAS) / (2 * K - S2)) - 1).max() < 1e-8
assert abs(found.order[1] - 1) < 1e-4 and abs(found.limit[1] - known[1]) < 1e-9
assert abs(mass[2] / 4.17941684426e-5 - 1) < 1e-5, "at δ = 0.01, by quadrature of the density"
assert 0.5 < found.order[3] < 1.05, "faster than √δ, and faster still for smaller δ"
assert np.abs(collapse.values / np.sqrt(2 * DELTAS / K / np.pi) - 1).max() < 1e-4, "E|Z| of N(0, δ/k)"
assert abs(collapse.order - 0.5) < 1e-3 and abs(collapse.limit) < 1e-4
assert not climb.exists and climb.limit == np.inf
