r"""How long SGD, momentum, RMSprop and Adam stay in a minimum: one weight, one loss, four algorithms.

The loss f(x) = ¼(x² − 1)² has its minima at ±1 and a barrier of ¼ between them.  Six samples f_i = f − c_i x, drawn one
per step, give gradients g = x³ − x − c_i with the variance σ² = 1.05 everywhere.  From x = −1, at rest, the
algorithms

    SGD        x' = x − η g
    momentum   v' = μ v − η g,                      x' = x + v'                                 on (x, v)
    RMSprop    s' = β s + (1 − β) g²,               x' = x − η g/(√s' + ε)                      on (x, s)
    Adam       m' = μ m + (1 − μ) g, s' as before,  x' = x − η m'/(√s' + ε)                     on (x, m, s)

are followed until x > ½.  Each is a Markov chain of one to three coordinates; with its transition operator P the mean
number of steps T solves (I − P) T = 1, and no sample path is drawn.

Far from escaping, a small learning rate η of momentum moves x as SGD does with η/(1 − μ), and one of RMSprop or Adam
as SGD with η/(σ + ε).  At the same such *effective* rate h the drift is the same, and so is the noise to leading order,
so that by the common diffusion dX = −f' dt + √(hσ²) dW, one step = time h, all would need the same number of steps.
They do not, because a step over the barrier is decided by more than drift and variance: momentum averages several
batches, which must then all be unlikely, and RMSprop divides an unusually large gradient by a root that this gradient
has enlarged itself.  Adam does both, and stays longest.

Run it (half a minute) with

    mpirun -n 2 python3 demos/09_optimisers.py
"""

# # The four algorithms at an effective learning rate

from pathlib import Path

from mpi4py import MPI

import numpy as np

import fpsolver as fp

comm = MPI.COMM_WORLD
OUTPUT = Path(__file__).parent / "output"
SHIFTS = (-1.5, -0.9, -0.3, 0.3, 0.9, 1.5)
VARIANCE = float(np.mean(np.square(SHIFTS)))
MU, BETA, EPSILON = 0.8, 0.9, 0.1
SCALE = np.sqrt(VARIANCE) + EPSILON
RATES = np.array([0.15, 0.18, 0.22, 0.3, 0.4])
COMPARED = 0.22  # the rate at which paths are simulated
NOISE = fp.PerSample([lambda x, c=c: (x[0] ** 2 - 1) ** 2 / 4 - c * x[0] for c in SHIFTS])


def sgd(h):
    return fp.SGD(None, NOISE, h), fp.Domain.interval(-2, 0.5, 60), (-1.0,)


def momentum(h):
    """On (x, v/√η); the box is wide enough for the velocities of six equal batches in a row."""
    eta = h * (1 - MU)
    v = 6 * np.sqrt(eta)
    return fp.MomentumSGD(None, NOISE, eta, MU), fp.Domain.rectangle((-2, -v), (0.5, v), (18, 14)), (-1.0, 0.0)


def rmsprop(h):
    process = fp.RMSprop(None, NOISE, h * SCALE, decay=BETA, epsilon=EPSILON)
    return process, fp.Domain.rectangle((-2, 0), (0.5, 6), (18, 14)), (-1.0, VARIANCE)


def adam(h):
    process = fp.Adam(None, NOISE, h * SCALE, beta1=MU, beta2=BETA, epsilon=EPSILON)
    return process, fp.Domain.box((-1.8, -1.8, 0.15), (0.5, 1.8, 6), (9, 7, 5)), (-1.0, 0.0, VARIANCE)


ALGORITHMS = {"SGD": sgd, "momentum": momentum, "RMSprop": rmsprop, "Adam": adam}


def by_chain(make, h):
    """Mean steps and their error bar."""
    process, domain, start = make(h)
    steps = fp.mean_exit_time(fp.Chain(process, domain, ["right"]), start=start).in_steps()
    return float(steps), float(steps.error[0])


def by_paths(make, h):
    process, domain, start = make(h)
    paths = fp.simulate(process, domain, start, absorbing="right", method="sgd", paths=4000, seed=1)
    return paths.mean_exit_time(level=0.999).scaled(1 / process.time_per_step)


def by_diffusion(h):
    process, domain, start = sgd(h)
    with fp.Generator(process, domain, absorbing=["right"]) as gen:
        return float(fp.mean_exit_time(gen, start=start).in_steps())


steps = {name: np.array([by_chain(make, h) for h in RATES]) for name, make in ALGORITHMS.items()}
paths = {name: by_paths(make, COMPARED) for name, make in ALGORITHMS.items()}
diffusion = np.array([by_diffusion(h) for h in RATES])

# # Picture

figure = None
if comm.rank == 0:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 5.2), layout="constrained")
    ax = figure.subplots()
    for i, (name, found) in enumerate(steps.items()):
        ax.errorbar(1 / RATES, *found.T, fmt=f"C{i}o-", ms=5, capsize=3, label=f"{name}, by its chain")
        estimate = paths[name]
        ax.errorbar(1 / COMPARED, estimate.value, estimate.error, fmt=f"C{i}s", mfc="none", ms=11, capsize=5)
    ax.plot([], [], "s", color="0.4", mfc="none", ms=11, label="by 4000 paths, 99.9 %")
    ax.plot(1 / RATES, diffusion, "k--", lw=1.2, label="the diffusion of all four")
    ax.set(xlabel="1 / effective learning rate", ylabel="mean steps until x > ½", yscale="log")
    ax.set_title("Escape from a double well with noise of variance 1.05")
    ax.grid(alpha=0.25)
    ax.legend()
fp.plot.save(figure, OUTPUT / "optimisers.png")

# # Report and claims

if comm.rank == 0:
    print("effective rate   diffusion" + "".join(f"{name + ', steps':>24}" for name in steps))
    for k, h in enumerate(RATES):
        cells = (f"{found[k, 0]:.2f} ± {found[k, 1]:.1g}" for found in steps.values())
        print(f"{h:14.2f} {diffusion[k]:11.2f}" + "".join(f"{cell:>24}" for cell in cells))
    print(f"by paths, {COMPARED:.2f}           " + "".join(f"{estimate!s:>24}" for estimate in paths.values()))

at = list(RATES).index(COMPARED)
for name, found in steps.items():
    value, error = found[at]
    assert abs(value - paths[name].value) < error + paths[name].error, f"{name}: chain and paths agree"
    assert (found[:, 1] < (0.2 if name == "Adam" else 0.01) * found[:, 0]).all(), f"{name}: error bars are small"
    assert (np.diff(found[:, 0]) < 0).all(), "larger learning rates leave sooner"
order = np.array([found[:, 0] for found in steps.values()])
assert (order[1:] > 1.05 * order[0]).all(), "all stay longer than SGD at the same effective rate"
assert (order[1] > 1.3 * order[0]).all() and (order[3] > order[:3].max(axis=0)).all(), "momentum much, Adam longest"
