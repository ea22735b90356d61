r"""Does SGD stay near a minimum for ever?  Flat landscapes, with noise that vanishes at the minimum and that does not.

At a minimum x* the Łojasiewicz exponent θ says how flat the loss is: |f'| ≥ C (f − f*)^θ.  An and Lu (SGD under a local
Łojasiewicz condition) and Lugosi and Nualart (in continuous time) prove that SGD which starts close to x* stays in a
ball for ever with positive probability, provided that the noise vanishes with the loss.  Here f(x) = |x|^q/q, so that
θ = 1 − 1/q: ½, ⅔ and ¾ for q = 2, 3 and 4.  From x₀ > 0 the ball |x| < 1 is left, or not, with three kinds of noise,
six numbers c_i of mean 0 and mean square s² = 6.25 and the learning rate η = 0.2:

    f_i' = (1 + c_i) f'(x)            Σ = s² f'²        all samples are multiples of the loss;
    f_i' = f'(x) + c_i x^{q/2}        Σ = s² q f        as much noise as the theorems allow;
    f_i' = f'(x) + c_i/2.5            Σ = 1             noise that does not vanish.

The probability u of leaving solves u = Pu for SGD (P its transition operator) and −f'u' + ½ηΣu'' = 0 for its diffusion,
which has the solutions ∫₀ˣ exp(−k y^{2−q}/(q − 2)) dy for the first and x^{1+k} for the second noise, k = 2/(ηs²),
divided by their values at 1.  For q = 2 both noises are the same, and SGD multiplies x by a random factor: u falls as
x^κ with E|1 − η(1 + c)|^κ = 1, in place of 1 + k.

So it depends on the noise how θ matters.  With the first one u falls faster than every power of x where the minimum is
flatter than quadratic: the flatter it is, the safer it is to start close.  With the second one it is the same power of
x for every θ.  With additive noise SGD leaves with probability one for every θ, after finitely many steps in the mean.

Both problems are solved on (δ, 1) with δ = 0.005 in place of the minimum; paths that come back from there are at most
a share δ^κ < 1e-5.

Run it (half a minute) with

    mpirun -n 2 python3 demos/10_interpolation.py
"""

# # Losses and noises

from pathlib import Path

from mpi4py import MPI

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq

import fpsolver as fp

comm = MPI.COMM_WORLD
OUTPUT = Path(__file__).parent / "output"
ETA, S, CLOSE, START = 0.2, 2.5, 0.005, 0.6
POWERS = (2, 3, 4)
C = S * np.array([-1.5, -0.9, -0.3, 0.3, 0.9, 1.5]) / np.sqrt(1.05)
K = 2 / (ETA * S**2)
STARTS = np.geomspace(0.25, 0.95, 16)
STEPS = np.unique(np.round(np.geomspace(1, 10_000, 40)))
FOLLOWED = slice(0, int((STEPS <= 1000).sum()), 4)  # where paths are looked at


def sgd(sample):
    return fp.SGD(None, fp.PerSample([lambda x, c=c: sample(x[0], c) for c in C.tolist()]), ETA)


NOISES = {
    "multiples of the loss": lambda q: sgd(lambda x, c: (1 + c) * x**q / q),
    "as large as allowed": lambda q: sgd(lambda x, c: x**q / q + c * x ** (q / 2 + 1) / (q / 2 + 1)),
}


def additive(q):
    return sgd(lambda x, c: abs(x) ** q / q + c / S * x)


# # The probability of leaving, three ways


def leaving(process):
    """u at the starts: by the chain, its error bar, by the diffusion; by paths from one start."""
    domain, points = fp.Domain.interval(CLOSE, 1, 150), STARTS[:, None]
    parts = ["left", "right"]
    chain = fp.exit_probability(fp.Chain(process, domain, parts), to="right", start=points)
    with fp.Generator(process, domain, parts) as gen:
        diffusion = fp.exit_probability(gen, to="right", start=points)
    return chain.value, chain.error, diffusion.value


def exact(name, q):
    """The diffusion's u in closed form."""
    if q == 2 or name == "as large as allowed":
        return STARTS ** (1 + K)

    def scale(x):
        return quad(lambda y: np.exp(-K * (y ** (2 - q) - 1) / (q - 2)), 0, x)[0]

    return np.array([scale(x) for x in STARTS]) / scale(1)


def staying(process, low, parts):
    """P(still inside after k steps) from START: chain, diffusion, paths."""
    domain, times = fp.Domain.interval(low, 1, 100), ETA * STEPS
    chain = fp.survival(fp.Chain(process, fp.Domain.interval(low, 1, 500), parts), (START,), times)
    with fp.Generator(process, domain, parts) as gen:
        diffusion = fp.survival(gen, (START,), times)
    until = times[FOLLOWED] + ETA / 2  # between two steps
    options = {"absorbing": parts, "method": "sgd", "paths": 8000, "horizon": until[-1] + ETA, "seed": 3}
    return chain, diffusion, fp.simulate(process, domain, (START,), **options).survival(until, level=0.999)


left = {(name, q): leaving(make(q)) for name, make in NOISES.items() for q in POWERS}
vanishing = {q: staying(NOISES["multiples of the loss"](q), 0, ["right"]) for q in POWERS}
constant = {q: staying(additive(q), -1, ["left", "right"]) for q in POWERS}
means = {
    q: fp.mean_exit_time(
        fp.Chain(additive(q), fp.Domain.interval(-1, 1, 100), ["left", "right"]), start=(START,)
    ).in_steps()
    for q in POWERS
}
theta = {
    q: fp.diagnostics.lojasiewicz(lambda x, q=q: abs(x[0]) ** q / q, (0.0,), fp.Domain.interval(-1, 1, 8))
    for q in POWERS
}
kappa = brentq(lambda p: np.mean(np.abs(1 - ETA * (1 + C)) ** p) - 1, 0.5, 20)
THETAS, EXPONENTS = {2: "½", 3: "⅔", 4: "¾"}, {2: "²", 3: "³", 4: "⁴"}

# # Picture


def draw_staying(ax):
    for i, q in enumerate(POWERS):
        for found, style in ((vanishing, "-"), (constant, ":")):
            chain, diffusion, paths = found[q]
            ax.semilogx(STEPS, chain, f"C{i}{style}", lw=2 if style == "-" else 2.5)
            ax.semilogx(STEPS, diffusion, f"C{i}--", lw=0.8)
            bars = np.array([[p.value - p.low, p.high - p.value] for p in paths]).T
            ax.errorbar(STEPS[FOLLOWED], [p.value for p in paths], bars, fmt=f"C{i}.", ms=6, capsize=2)
    for style, label in (("k-", "Σ = s²f'²"), ("k:", "Σ = 1"), ("k--", "its diffusion"), ("k.", "8000 paths")):
        ax.plot([], [], style, lw=0.8 if style == "k--" else 2, label=label)
    ax.set(xlabel="steps", ylabel=f"probability to be still inside, x₀ = {START}", ylim=(-0.02, 1.02))
    ax.set_title("Staying: noise that vanishes, and not")
    ax.legend(loc="lower left", fontsize=9)


def draw_leaving(ax, name, title):
    for i, q in enumerate(POWERS):
        chain, error, diffusion = left[name, q]
        ax.errorbar(
            STARTS, chain, error, fmt=f"C{i}-", lw=2, capsize=2, label=f"θ = {THETAS[q]}: f = |x|{EXPONENTS[q]}/{q}"
        )
        ax.loglog(STARTS, diffusion, f"C{i}--", lw=0.8)
        ax.loglog(STARTS, exact(name, q), f"C{i}x", ms=5)
    ax.plot([], [], "k--", lw=0.8, label="diffusion, × closed form")
    ax.set(xlabel="start x₀", ylabel="probability to leave |x| < 1 ever", title=title)
    ax.set(xscale="log", yscale="log", ylim=(1e-7 if name == "multiples of the loss" else 5e-3, 1.5))
    ax.set_xticks([0.25, 0.4, 0.6, 0.9], ["0.25", "0.4", "0.6", "0.9"])
    ax.set_xticks([], minor=True)
    ax.legend(loc="lower right", fontsize=9)


figure = None
if comm.rank == 0:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    panels = figure.subplots(1, 3)
    draw_staying(panels[0])
    for ax, name, title in zip(panels[1:], NOISES, ("Leaving: Σ = s²f'²", "Leaving: Σ = s²qf"), strict=True):
        draw_leaving(ax, name, title)
fp.plot.save(figure, OUTPUT / "interpolation.png")

# # Report and claims

if comm.rank == 0:
    print(f"x₀ = {START}: probability to stay for ever (after {STEPS[-1]:.0f} steps)")
    print("   θ       Σ = s²f'²: SGD   its diffusion   8000 paths            Σ = 1: SGD   mean steps")
    for q in POWERS:
        chain, diffusion, paths = vanishing[q]
        print(f"{theta[q]!r:32.14} {chain[-1]:8.4f} {diffusion[-1]:15.4f}   {paths[-1]!r:18} ", end="")
        print(f"{constant[q][0][-1]:13.1e} {float(means[q]):12.2f}")
    print(f"κ = {kappa:.3f} for SGD and {1 + K:.3f} for its diffusion\n\nprobability to leave from")
    print(f"{'x₀':>26}" + "".join(f"{x:10.3f}" for x in STARTS[::3]))
    for (name, q), (chain, _, diffusion) in left.items():
        for what, values in (("SGD", chain), ("diffusion", diffusion)):
            print(f"{name:21} q={q} {what:9}" + "".join(f"{v:10.2e}" for v in values[::3]))

for q in POWERS:
    assert theta[q].interval[0] <= 1 - 1 / q <= theta[q].interval[1], "the exponent of the landscape"
    for found in (vanishing, constant):
        chain, _, paths = found[q]
        for p, value in zip(paths, chain[FOLLOWED], strict=True):
            assert p.low - 2e-3 <= value <= p.high + 2e-3, f"{p} by paths, {value:.4f} by the chain"
    chain, diffusion, _ = vanishing[q]
    assert chain[-1] > diffusion[-1] > 0.7 and chain[-10] - chain[-1] < 1e-3, "most paths stay for ever"
    assert constant[q][0][-1] < 1e-2 and float(means[q]) < 2000, "with additive noise none does"
for (name, q), (_, _, diffusion) in left.items():
    assert np.abs(diffusion / exact(name, q) - 1).max() < 1e-2, "the PDE is that of the closed form"
steep = [left["multiples of the loss", q][0][0] for q in POWERS]
equal = [left["as large as allowed", q][0][0] for q in POWERS]
assert steep[0] > 10 * steep[1] > 1e4 * steep[2], "close to a flat minimum it is safer"
assert max(equal) < 1.2 * min(equal), "unless the noise is as large as it can be"
slope = np.polyfit(np.log(STARTS[:8]), np.log(left["multiples of the loss", 2][0][:8]), 1)[0]
assert abs(slope / kappa - 1) < 0.15, "a power law with the exponent of the random factor"
