r"""How long SGD stays in a bad minimum: a computed time, proven bounds, and Kramers' law.

The loss f(x, y) = ¼(x² − 1)² + x/10 + ¼y² has its minimum on the left and a worse one, m = (0.9456, 0), on the right,
from which a pass of height Δf = 0.15766 at z = (0.1010, 0) leads to it.  To first order SGD with learning rate η and
batches of B samples is the diffusion

    dX = −∇f(X) dt + √(η Σ(X)/B) dW,        D = η/(2B) Σ,        one step = time η,

and the mean time τ until it reaches x = −0.8, beyond the pass, solves −∇f·∇τ + D:∇∇τ = −1 with τ = 0 there.  Three
answers are put side by side, for five learning rates and three batch sizes:

* the solution of this equation at m, with its error bar;
* bounds: if L w ≤ −1 and w ≥ 0 where paths leave, then τ ≤ w, and likewise from below, for any smooth w;
* Kramers' law τ ≈ 2π/|λ₋(z)| √(|det ∇∇f(z)| / det ∇∇f(m)) e^{Δf/ε}, for noise with a temperature: D = εI.

Two kinds of noise are compared, with the same variance Σ₁₁ = ½ along the way out at m:

* isotropic: Σ = ½ I.  Then ε = η/(4B), and ln τ is a straight line in 1/η with slope 4BΔf: batches four times larger
  need a learning rate four times larger for the same τ.
* four samples, two f₊ and two f₋ with f± = f ± a(x + ¼x²), drawn at random: Σ = a²(1 + ½x)² e₁e₁ᵀ is of rank one,
  and on the pass half as large as at m.  No temperature exists and Kramers' law does not apply.

In both x moves independently of y, so that a quadrature gives the exact time, from which the solution must not differ
by more than its error bar and what rounding can do,

    τ(m) = ∫_{−0.8}^{m} e^{U(s)} ∫_s^2 e^{−U(r)}/D₁₁(r) dr ds,        U' = ∂ₓf/D₁₁.

The equation is nevertheless solved in the plane, where nothing is known of this.  Run it (half a minute) with

    mpirun -n 2 python3 demos/03_escape.py
"""

# # Loss, noise and domain

from dataclasses import dataclass
from pathlib import Path

from mpi4py import MPI

import numpy as np
from scipy.integrate import cumulative_simpson

import fpsolver as fp

comm = MPI.COMM_WORLD
OUTPUT = Path(__file__).parent / "output"
VARIANCE = 0.5
BAD = (fp.landscapes.tilted_well.minima[1][0], 0.0)
EXIT, END = -0.8, 2.0
A = np.sqrt(VARIANCE) / (1 + BAD[0] / 2)
BATCHES = (1, 2, 4)
RATES = (0.055, 0.07, 0.09, 0.12, 0.16)  # learning rates per sample of a batch, η/B


def say(*words):
    if comm.rank == 0:
        print(*words, flush=True)


def loss(x):
    return fp.landscapes.tilted_well(x) + x[1] ** 2 / 4


def sample(sign):
    return lambda x: loss(x) + sign * A * (x[0] + x[0] ** 2 / 4)


NOISES = {
    "isotropic noise": fp.SGD(loss, fp.Isotropic(VARIANCE), RATES[-1]),
    "rank-one noise": fp.SGD(None, fp.PerSample(2 * [sample(1.0), sample(-1.0)]), RATES[-1]),
}


def exact(noise, ratio):
    """τ(m) by quadrature; ``ratio`` = η/B."""

    def integral(values, grid):
        return cumulative_simpson(values, x=grid, initial=0)

    x = np.concatenate([np.linspace(EXIT, BAD[0], 20001), np.linspace(BAD[0], END, 20001)[1:]])
    D = ratio / 2 * (VARIANCE if noise == "isotropic noise" else A**2 * (1 + x / 2) ** 2)
    U = integral((x**3 - x + 0.1) / D, x)
    inner = integral((np.exp(-U) / D)[::-1], -x[::-1])[::-1]  # from the right: there is next to nothing on the right
    return float(integral(np.exp(U) * inner, x)[20000])


# # The three answers
#
# A generator is assembled once for each noise; other learning rates and batch sizes recompile nothing.  The equation
# knows η and B through η/B only; τ is computed for every B, as a check, its error bar and the bounds for B = 1.


@dataclass
class Answer:
    """What is known about one learning rate and batch size."""

    eta: float
    batch: int
    tau: float
    error: float  # of the discretisation
    rounding: float
    exact: float
    bounds: fp.diagnostics.ExitBounds
    kramers: fp.diagnostics.EyringKramers


def study(noise):
    domain = fp.Domain.rectangle((EXIT, -1.0), (END, 1.0), (32, 6))
    first = fp.Generator(NOISES[noise], domain, absorbing=["left"])
    answers = []
    for ratio in RATES:
        true = exact(noise, ratio)
        for batch in BATCHES:
            gen = first.replace(learning_rate=ratio * batch, batch_size=batch)
            if batch == 1:
                solution = fp.mean_exit_time(gen, start=BAD)
                error, bounds = solution.error[0], fp.diagnostics.exit_bounds(gen, BAD, solution=solution)
            else:
                solution = fp.mean_exit_time(gen)
            tau = solution.at(BAD)[0]
            kramers = fp.diagnostics.eyring_kramers(gen.process, domain, start=BAD, absorbing="left")
            rounding = solution.stats["roundoff"] * tau
            answers.append(Answer(ratio * batch, batch, tau, error, rounding, true, bounds, kramers))
            gen.close()
    first.close()
    return answers


# # Table


def report(noise, answers):
    say(f"\n{noise}\n")
    say("    η    B    steps      time ± error bar     quadrature   lower bound  upper bound  Kramers")
    for a in answers:
        law = "-" if np.isnan(a.kramers.time) else f"{a.kramers.time:.5g}" + ("" if a.kramers.holds else " *")
        say(
            f"{a.eta:6.3f} {a.batch:3} {a.tau / a.eta:10.3g} {a.tau:13.8g} ± {a.error:<8.2g} {a.exact:12.8g}"
            f" {a.bounds.lower[0]:10.3g} {a.bounds.upper[0]:12.3g}    {law}"
        )
    for why in dict.fromkeys(a.kramers.failed for a in answers if a.kramers.failed):
        say(f"  * Kramers' law: {'; '.join(why)}")


# # Picture
#
# ln τ against 1/η, where Kramers' law is a straight line.  Error bars are drawn and are smaller than the symbols.
# Between the bounds the picture is shaded; an arrow stands for an upper bound that is far above it.

STYLES = {1: ("#0072B2", "o"), 2: ("#D55E00", "s"), 4: ("#009E73", "^")}
TOP = 3e9


def draw(results):
    figure = None
    if comm.rank == 0:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 5.6), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for ax, (noise, answers), letter in zip(panels, results.items(), "ab", strict=True):
            for batch in BATCHES:
                draw_batch(ax, batch, answers, results["isotropic noise"])
            ax.set(
                yscale="log",
                ylim=(5, TOP),
                xlim=(0, 20),
                xlabel="inverse learning rate 1/η",
                title=f"({letter}) {noise}",
            )
            ax.grid(alpha=0.25)
        panels[0].set_ylabel("mean exit time τ (one step = time η)")
        legend(figure, panels[0])
    fp.plot.save(figure, OUTPUT / "escape.png")


def draw_batch(ax, batch, answers, isotropic):
    colour, marker = STYLES[batch]
    mine = [a for a in answers if a.batch == batch]
    x = np.array([1 / a.eta for a in mine])
    upper = np.array([a.bounds.upper[0] for a in mine])
    ax.fill_between(x, [a.bounds.lower[0] for a in mine], upper, color=colour, alpha=0.13, lw=0)
    ax.plot(x[upper > TOP], np.full((upper > TOP).sum(), TOP / 2), color=colour, marker=r"$\uparrow$", ls="", ms=11)
    law = [a.kramers.time for a in isotropic if a.batch == batch]
    applies = answers is isotropic
    ax.plot(x, law, color=colour, ls="--" if applies else ":", lw=2)
    style = {"color": colour, "lw": 0.7, "mec": "k", "mew": 0.6, "ms": 7, "capsize": 4}
    ax.errorbar(x, [a.tau for a in mine], [a.error for a in mine], fmt=marker + "-", **style)


def legend(figure, ax):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    batches = [
        Line2D([], [], color=c, marker=m, mec="k", mew=0.6, lw=0.7, ms=7, label=f"PDE, batch size {b}")
        for b, (c, m) in STYLES.items()
    ]
    others = [
        Line2D([], [], color="0.3", ls="--", lw=2, label="Kramers' law"),
        Line2D([], [], color="0.3", ls=":", lw=2, label="it does not apply: with the noise at the minimum"),
        Patch(color="0.3", alpha=0.2, lw=0, label="between lower and upper bound"),
        Line2D([], [], color="0.3", marker=r"$\uparrow$", ls="", ms=11, label="upper bound above the picture"),
    ]
    figure.legend(handles=[*batches, *others], loc="outside lower center", ncols=4, frameon=False)


# # Claims


def check(results):
    for noise, answers in results.items():
        for a in answers:
            case = f"{noise}, learning rate {a.eta:g}, batch size {a.batch}"
            # error bars are estimates, here within a few per cent of the error itself
            assert abs(a.tau - a.exact) <= 1.05 * a.error + a.rounding, f"{case}: the error bar holds"
            assert a.error + a.rounding < 5e-3 * a.tau, f"{case}: which is small"
            assert a.bounds.lower[0] <= a.exact <= a.bounds.upper[0], f"{case}: and between the bounds"
            assert a.bounds.consistent.all()
        for ratio in RATES:
            same = [a for a in answers if np.isclose(a.eta / a.batch, ratio)]
            assert np.ptp([a.tau for a in same]) <= 1e-9 * same[0].tau + same[0].rounding, "only η/B matters"
        assert answers[-1].bounds.upper[0] < 20 * answers[-1].bounds.lower[0], "bounds tell much where exit is frequent"
        assert answers[0].bounds.upper[0] > 1e20, "and next to nothing where it is rare"
    isotropic, two = results.values()
    for a in isotropic:
        k = a.kramers
        assert k.holds == (k.barrier > 5 * k.temperature), "Kramers' law needs a barrier of some temperatures"
        assert abs(a.tau / k.time - 1) < 3 * k.temperature, "its error is of the order of the temperature"
    for a in two:
        assert np.isnan(a.kramers.time) and "not isotropic" in a.kramers.failed[0], "no temperature, no law"
    wrong = [a.tau / b.kramers.time for a, b in zip(two, isotropic, strict=True)]
    assert wrong[0] > 40 and (np.diff(wrong[:: len(BATCHES)]) < 0).all(), "a borrowed temperature is ever more wrong"


def main():
    results = {noise: study(noise) for noise in NOISES}
    draw(results)
    for noise, answers in results.items():
        report(noise, answers)
    check(results)


if __name__ == "__main__":
    main()
