r"""What SGD does to a single neuron: fall into a bad minimum, escape from it, settle.

A neuron with sine activation predicts sin(w₀ a + w₁).  Trained on N samples (aᵢ, yᵢ) with weight decay λ, it has the
losses and the loss

    fᵢ(w) = ½ (sin(w₀ aᵢ + w₁) − yᵢ)² + ½ λ |w|²,        f = (1/N) Σ fᵢ,        w ∈ R².

SGD with one sample per step and learning rate η is, to first order in η, the diffusion

    dW = −∇f(W) dt + √(η Σ(W)) dB,        Σ = (1/N) Σ (∇fᵢ − ∇f)(∇fᵢ − ∇f)ᵀ,        one step = time η,

so that D = ½ η Σ.  Both data sets below give two minima of different depth.  With N = 20 samples Σ is regular; with
N = 2 it has rank one everywhere, and noise acts in a single direction.  Three questions are asked about each:

1. Drift.  Started in the basin of the worse minimum, where does the density p (∂ₜp = ∇·(p∇f) + ∂ᵢ∂ⱼ(Dᵢⱼ p)) go, and how
   fast?  The mean follows the gradient flow x' = −∇f(x), and the end of the way takes 1/(smallest eigenvalue of ∇∇f).
2. Escape.  On the worse minimum's basin of attraction, which ends at the saddle's stable manifold S (the separatrix),
   the mean exit time solves −∇f·∇τ + D:∇∇τ = −1 with τ = 0 on S; its second moment the same with −2τ.
3. Limit.  The invariant density solves the stationary equation; how much of it is in each basin?

Run it (about a minute on two cores; the forms are compiled in the first run) with

    mpirun -n 2 python3 demos/01_single_neuron.py

Pictures and files for ParaView go to demos/output/.  Needs gmsh, matplotlib, scipy and slepc4py.
"""

# # The neuron and its data
#
# The package gets the losses in UFL, which differentiates them.  The numpy version serves what is no business of a PDE
# solver: minima, saddles, the separatrix, and the simulations at the end.

from dataclasses import dataclass
from pathlib import Path

from mpi4py import MPI

import basix
import basix.ufl
import numpy as np
import ufl
from dolfinx import fem
from scipy.integrate import solve_ivp
from scipy.optimize import root

import fpsolver as fp

comm = MPI.COMM_WORLD
OUTPUT = Path(__file__).parent / "output"
LAMBDA = 0.1


def say(*words):
    if comm.rank == 0:
        print(*words, flush=True)


@dataclass
class Neuron:
    """A neuron with its training data; weights w have shape (2, ...)."""

    a: np.ndarray
    y: np.ndarray

    def ufl_losses(self):
        def sample(a, y):
            return lambda w: (ufl.sin(a * w[0] + w[1]) - y) ** 2 / 2 + LAMBDA / 2 * (w[0] ** 2 + w[1] ** 2)

        return [sample(float(a), float(y)) for a, y in zip(self.a, self.y, strict=True)]

    def loss(self, w):
        w = np.asarray(w)[..., None]
        return ((np.sin(self.a * w[0] + w[1]) - self.y) ** 2).mean(-1) / 2 + LAMBDA / 2 * (w**2).sum(0)[..., 0]

    def gradients(self, w, sample=None):
        """∇fᵢ of all samples, shape (2, ..., N), or of one chosen sample for each w, shape (2, ...)."""
        w = np.asarray(w, float)
        if sample is None:
            w, a, y = w[..., None], self.a, self.y
        else:
            a, y = self.a[sample], self.y[sample]
        z = a * w[0] + w[1]
        slope = (np.sin(z) - y) * np.cos(z)
        return np.stack((slope * a, slope)) + LAMBDA * w

    def gradient(self, w):
        return self.gradients(w).mean(-1)

    def hessian(self, w):
        z = self.a * w[0] + w[1]
        c = np.cos(z) ** 2 - (np.sin(z) - self.y) * np.sin(z)
        x = np.stack((self.a, np.ones_like(self.a)))
        return (c * x) @ x.T / len(self.a) + LAMBDA * np.eye(2)

    def critical_point(self, guess):
        return root(self.gradient, guess, jac=self.hessian, tol=1e-13).x

    def flow(self, start, times):
        """Gradient flow x' = −∇f(x), shape (times, 2)."""
        path = solve_ivp(lambda t, x: -self.gradient(x), (0, times[-1]), start, t_eval=times, rtol=1e-9, atol=1e-12)
        return path.y.T


@dataclass
class Case:
    """One data set and what is asked about it.

    The box is as large as needed for its walls, which reflect, to carry no mass: both cases have further minima outside
    whose passes are more than 0.5 higher than the one between the two minima inside.
    """

    name: str
    neuron: Neuron
    better: tuple  # guesses of the critical points
    worse: tuple
    saddle: tuple
    low: tuple  # the box
    high: tuple
    ceiling: float  # w₁ at which the basin of attraction is cut off: further up its edge is a ridge, no separatrix
    cells: tuple  # of a coarse and a fine mesh of the box
    start: tuple  # where training starts
    eta: float  # learning rate
    etas: tuple  # learning rates for the exit times, the largest last
    slow_etas: tuple  # those at which SGD itself is simulated
    tag: str  # in file names

    def __post_init__(self):
        self.better, self.worse, self.saddle = map(self.neuron.critical_point, (self.better, self.worse, self.saddle))

    def process(self):
        return fp.SGD(loss=None, noise=fp.PerSample(self.neuron.ufl_losses()), learning_rate=self.eta)


def twenty_samples():
    rng = np.random.default_rng(11)
    a = 1.5 * rng.normal(size=20)
    teacher = 1.5 * rng.normal(size=2)
    return Neuron(a, np.sin(teacher[0] * a + teacher[1]) + 0.4 * rng.normal(size=20))


CASES = [
    Case(
        "20 samples",
        twenty_samples(),
        better=(1.03, -0.60),
        worse=(-1.10, -1.91),
        saddle=(-0.47, -0.90),
        low=(-4.0, -4.4),
        high=(4.0, 1.4),
        ceiling=0.5,
        cells=((24, 18), (32, 24)),
        start=(-2.8, -1.2),
        eta=0.3,
        etas=(0.2, 0.25, 0.3, 0.4, 0.6),
        slow_etas=(0.6,),
        tag="20",
    ),
    Case(
        "2 samples",
        Neuron(np.array([-0.75, -0.42]), np.array([-0.59, 1.18])),
        better=(0.81, 0.68),
        worse=(-1.85, 1.63),
        saddle=(-0.79, 1.10),
        low=(-5.0, -1.2),
        high=(4.0, 4.4),
        ceiling=4.4,
        cells=((28, 18), (40, 25)),
        start=(-3.0, 1.8),
        eta=0.5,
        etas=(0.25, 0.3, 0.4, 0.5, 0.6),
        slow_etas=(0.4, 0.5, 0.6),
        tag="2",
    ),
]


# # The basin of attraction
#
# Backwards in time the gradient flow leaves the saddle along the separatrix, which in both cases runs from the lower to
# the upper wall with the worse basin on its left.


def separatrix(case, spacing=0.06):
    """Points on the separatrix from the lower wall to the upper one, shape (n, 2)."""
    direction = np.linalg.eigh(case.neuron.hessian(case.saddle))[1][:, 1]
    direction *= np.sign(direction[1])

    def uphill(s, w):  # parametrised by arc length
        g = case.neuron.gradient(w)
        return g / np.linalg.norm(g)

    def branch(sign, wall):
        def at_wall(s, w):
            return w[1] - wall

        at_wall.terminal = True
        path = solve_ivp(
            uphill,
            (0, 30),
            case.saddle + sign * 1e-4 * direction,
            events=at_wall,
            rtol=1e-9,
            atol=1e-12,
            dense_output=True,
        )
        length = path.t[-1]
        return path.sol(np.linspace(0, length, int(np.ceil(length / spacing)) + 1)).T

    points = np.vstack((branch(-1, case.low[1])[:0:-1], [case.saddle], branch(1, case.ceiling)[1:]))
    assert (np.diff(points[:, 1]) > 0).all() and abs(points[-1, 1] - case.ceiling) < 1e-6
    return points


def basin(case, h):
    """The worse basin in triangles of size h; the part "separatrix" of its boundary consists of the points' edges."""
    edge = separatrix(case)
    corners = [(case.low[0], case.ceiling), case.low]
    return fp.Domain.polygon(np.vstack((edge, corners)), h, edges={"separatrix": range(len(edge) - 1)})


def in_worse_basin(case):
    """Indicator of the worse basin as a function of points (2, n)."""
    edge = separatrix(case)
    return lambda w: (w[0] < np.interp(w[1], edge[:, 1], edge[:, 0])).astype(float)


# # Integrals against the density
#
# The mass in a ball or basin is a linear functional of the density, ∫ g p.  Its vector is assembled once, with g known
# at quadrature points only, so that discontinuous g are allowed.


def functional(gen, g, degree=12):
    """The vector ℓ with ℓ·p = ∫ g p."""
    mesh = gen.domain.mesh
    Q = fem.functionspace(mesh, basix.ufl.quadrature_element("triangle", degree=degree))
    points = basix.make_quadrature(basix.CellType.triangle, degree)[0]
    cells = np.arange(len(Q.dofmap.list), dtype=np.int32)
    x = fem.Expression(ufl.SpatialCoordinate(mesh), points).eval(mesh, cells).reshape(-1, 2)
    weight = fem.Function(Q)
    weight.x.array[Q.dofmap.list.ravel()] = g(x.T)
    dx = ufl.dx(domain=mesh, metadata={"quadrature_degree": degree, "quadrature_scheme": "default"})
    return gen.assemble_vector(weight * ufl.TestFunction(gen.V) * dx)


def integral(gen, g, solution):
    return functional(gen, g).dot(gen.vector(solution.raw))


def negative_mass(gen, solution):
    """∫ p⁻ of what was computed, before it is made non-negative: what the mesh does not resolve."""
    dx = ufl.dx(domain=gen.domain.mesh, metadata={"quadrature_degree": 12})
    p = solution.raw
    return comm.allreduce(fem.assemble_scalar(fem.form((abs(p) - p) / 2 * dx)))


# # Question 1: drift
#
# One evolution over the whole box, from the first steps to the limit.  A second one with half the learning rate tells
# what of the mean's distance from the gradient flow is due to noise.  How fast the end of the way is gone is the decay
# rate of the slowest mode within the basin (the second eigenvalue there; the first is the rate of escape).

EARLY = np.linspace(0, 16, 33)
LATE = np.geomspace(20, 3000, 24)
BALL = 0.6  # radius of the ball around the worse minimum: two to three standard deviations of what stays there


def drift(case, gen, times):
    """The density from a narrow Gaussian at the start, and what is watched of it: arrays over ``times``."""
    flow = fp.evolve(gen, fp.gaussian(case.start, 0.1), times, tol=1e-4)
    densities = [gen.vector(p.raw) for p in flow]

    def watch(g):
        vector = functional(gen, g)
        return np.array([vector.dot(p) for p in densities])

    ball = watch(lambda w: (np.hypot(w[0] - case.worse[0], w[1] - case.worse[1]) < BALL).astype(float))
    mean = np.stack((watch(lambda w: w[0]), watch(lambda w: w[1])), axis=1)
    return flow, {"mean": mean, "ball": ball, "worse": watch(in_worse_basin(case)), "total": flow.mass}


def study_drift(case, gen, gen_basin):
    flow, curves = drift(case, gen, np.concatenate((EARLY, LATE)))
    path = case.neuron.flow(case.start, EARLY)
    with gen.replace(learning_rate=case.eta / 2) as calm:
        _, calmer = drift(case, calm, EARLY)
    away = [np.linalg.norm(c["mean"][: len(EARLY)] - path, axis=1).max() for c in (curves, calmer)]
    stiffness = np.linalg.eigvalsh(case.neuron.hessian(case.worse))[0]
    rate = -fp.spectrum(gen_basin, 2).eigenvalues[1].real
    fine = np.linspace(0, EARLY[-1], 1601)
    distance = np.linalg.norm(case.neuron.flow(case.start, fine) - case.worse, axis=1)
    peak = curves["ball"].max()
    return {
        "flow": flow,
        "curves": curves,
        "path": path,
        "away": away,
        "rate": rate,
        "stiffness": stiffness,
        "peak": peak,
        "t90": float(np.interp(0.9 * peak, curves["ball"][: len(EARLY)], EARLY)),
        "entered": float(fine[np.argmax(distance < BALL)]),
    }


# # Question 2: escape
#
# Mean and standard deviation of the exit time at the worse minimum, on two meshes and for several learning rates.  For
# these nothing is compiled again.


def study_escape(case, h):
    gen = fp.Generator(case.process(), basin(case, h), absorbing=["separatrix"])
    rows = []
    for eta in case.etas:
        with gen.replace(learning_rate=eta) as other:
            first, second = fp.exit_time_moments(other, 2)
            mean, square = first.at(case.worse)[0], second.at(case.worse)[0]
            rows.append((eta, mean, np.sqrt(square - mean**2) / mean))
            if eta == case.eta:
                tau = first
    return gen, tau, np.array(rows)


# The same two numbers from simulations.  The stochastic differential equation (Euler and Maruyama) must agree within
# the statistical error: its exit is tested against an edge moved inwards by 0.5826 times the step's standard deviation
# normal to it, which removes the leading error of testing at discrete times (Broadie, Glasserman, Kou 1997; Gobet,
# Menozzi 2010).
#
# SGD itself need not agree.  The diffusion has the mean and the covariance of its steps, and describes it well over a
# fixed time; but how long rare events take is decided by all cumulants of the noise.  The gradient of a single sample
# is bounded and far from Gaussian, so that here SGD stays several times longer, the more so the smaller η.  (The length
# of the steps matters less: with Gaussian noise of covariance Σ, steps of η = 0.6 leave the basin of the 20 samples
# after 48 time units, the diffusion after 53, SGD after 500.)


def simulate_diffusion(case, eta, paths, dt, seed=1):
    """Exit times of the diffusion from the worse minimum: mean and its standard error."""
    edge, rng = separatrix(case), np.random.default_rng([seed, comm.rank])
    tilt = np.gradient(edge[:, 0], edge[:, 1])
    w, times, t = np.tile(case.worse[:, None], paths // comm.size), [], 0.0
    while w.shape[1]:
        t += dt
        g = case.neuron.gradients(w)
        drift = g.mean(-1)
        g -= drift[..., None]
        a, b, c = (np.einsum("kn,kn->k", g[i], g[j]) / g.shape[-1] for i, j in ((0, 0), (0, 1), (1, 1)))
        root_a = np.sqrt(np.maximum(a, 1e-300))
        xi = rng.normal(size=w.shape)
        noise = np.stack((root_a * xi[0], b / root_a * xi[0] + np.sqrt(np.maximum(c - b**2 / root_a**2, 0)) * xi[1]))
        w = w - drift * dt + np.sqrt(eta * dt) * noise
        s = np.interp(w[1], edge[:, 1], tilt)
        spread = np.sqrt(eta * dt * (a - 2 * s * b + s**2 * c))  # of a step in the direction (1, -s), not normalised
        inside = w[0] < np.interp(w[1], edge[:, 1], edge[:, 0]) - 0.5826 * spread
        times += [t] * int((~inside).sum())
        w = w[:, inside]
    times = np.concatenate(comm.allgather(times))
    return times.mean(), times.std() / np.sqrt(len(times))


def simulate_sgd(case, eta, paths, seed=2):
    """Exit time of SGD with one sample per step, in units of η per step: mean and its standard error."""
    edge, rng = separatrix(case), np.random.default_rng([seed, comm.rank])
    w, steps, k = np.tile(case.worse[:, None], paths // comm.size), [], 0
    while w.shape[1]:
        k += 1
        w = w - eta * case.neuron.gradients(w, rng.integers(len(case.neuron.a), size=w.shape[1]))
        inside = w[0] < np.interp(w[1], edge[:, 1], edge[:, 0])
        steps += [k] * int((~inside).sum())
        w = w[:, inside]
    steps = np.concatenate(comm.allgather(steps))
    return eta * steps.mean(), eta * steps.std() / np.sqrt(len(steps))


# # Question 3: the limit
#
# The density is reported raw.  Where noise acts in one direction only, it is as thin as a needle, which these meshes do
# not resolve: the negative mass ∫ p⁻ says how badly, and no smaller probability is known.


def study_limit(case, gen):
    p = fp.stationary(gen)
    low, high = (np.array(corner)[:, None] for corner in (case.low, case.high))
    return {
        "density": p,
        "mass": integral(gen, lambda w: np.ones(w.shape[1]), p),
        "worse": integral(gen, in_worse_basin(case), p),
        "walls": integral(gen, lambda w: 1.0 - ((w > low + 0.25) & (w < high - 0.25)).all(axis=0), p),
        "negative": negative_mass(gen, p),
        "minimum": p.stats["minimum"],
        "maximum": comm.allreduce(p.function.x.array.max(), op=MPI.MAX),
    }


# # Pictures


def on_grid(case, solution, n=220):
    """Coordinates and values on a grid of the box (collective)."""
    x, y = (np.linspace(a + 1e-9, b - 1e-9, n) for a, b in zip(case.low, case.high, strict=True))
    points = np.stack(np.meshgrid(x, y), axis=-1)
    return x, y, solution.at(points.reshape(-1, 2)).reshape(n, n)


def draw_landscape(ax, case, early, late, path):
    """The loss, where training is early and in the end, and the gradient flow."""
    x, y, _ = early
    loss = case.neuron.loss(np.stack(np.meshgrid(x, y)))
    top = case.neuron.loss(case.saddle)
    ax.contour(
        x,
        y,
        loss,
        levels=np.linspace(loss.min(), loss.min() + 4 * (top - loss.min()), 33),
        colors="0.75",
        linewidths=0.6,
    )
    for (_, _, p), colour in ((early, "Oranges"), (late, "Blues")):
        ax.contourf(x, y, p / p.max(), levels=[0.03, 0.1, 0.25, 0.5, 0.75, 1.0], cmap=colour, vmin=-0.3, vmax=1)
    edge = separatrix(case)
    ax.plot(*edge.T, "k--", lw=1.2)
    ax.plot(*path.T, color="C3", lw=1.5)
    ax.plot(*case.start, "o", color="C3", ms=5)
    below = case.worse[1] < path[:, 1].mean()  # the name keeps clear of the path
    name(ax, "start", case.start, (0, 8))
    name(ax, "worse\nminimum", case.worse, (0, -34 if below else 12))
    name(ax, "better\nminimum", case.better, (30, -34))
    mark(ax, case)
    ax.set(xlim=(case.low[0], case.high[0]), ylim=(case.low[1], case.high[1]), aspect="equal")
    ax.set(xlabel="weight w₀", ylabel="bias w₁")


def mark(ax, case):
    for point in (case.worse, case.better):
        ax.plot(*point, "k+", ms=8)
    ax.plot(*case.saddle, "kx", ms=7)


def name(ax, text, point, offset):
    ax.annotate(text, point, xytext=offset, textcoords="offset points", fontsize=9, ha="center", va="bottom")


def draw_curves(ax, case, r, tau):
    """Where the mass is, against the number of steps on a logarithmic axis."""
    steps, c = r["flow"].times[1:] / case.eta, {k: v[1:] for k, v in r["curves"].items()}
    ax.semilogx(steps, c["worse"], "k", label="worse basin")
    ax.semilogx(steps, c["ball"], "C1", label="near the worse minimum")
    ax.semilogx(steps, c["total"] - c["worse"], "C0", label="better basin")
    for t, text in ((r["t90"], "arrived"), (tau, "mean exit time")):
        ax.axvline(t / case.eta, color="0.5", ls=":")
        ax.text(t / case.eta, 1.03, f"{text}\n{t / case.eta:.0f} steps", ha="center", fontsize=9)
    ax.set(xlabel="steps of SGD", ylabel="probability", ylim=(-0.02, 1.02))
    ax.legend(loc="center left", fontsize=9)


def draw_overview(case, r, tau, limit, early=8):
    """One figure with the answers to the three questions."""
    densities = [on_grid(case, p) for p in (r["flow"][early], limit["density"])]
    at_minimum = tau.at(case.worse)[0]
    figure = panels = None
    if comm.rank == 0:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(15, 4.7), layout="constrained")
        panels = figure.subplots(1, 3, width_ratios=(1.2, 1.1, 1))
        draw_landscape(panels[0], case, *densities, r["path"])
        steps = EARLY[early] / case.eta
        panels[0].set_title(f"1, 3. Density after {steps:.0f} steps (orange), in the end (blue)", fontsize=11)
        draw_curves(panels[2], case, r, at_minimum)
        panels[2].set_title("Where the mass is\n\n", fontsize=11)
    steps = fem.Function(tau.function.function_space)
    steps.x.array[:] = tau.function.x.array / case.eta
    fp.plot.field(
        steps,
        ax=panels[1] if comm.rank == 0 else None,
        label="mean number of steps until exit",
        limits=(0, 1.15 * at_minimum / case.eta),
        contours=7,
        axes=("weight w₀", "bias w₁"),
    )
    if comm.rank == 0:
        panels[1].plot(*separatrix(case).T, "k--", lw=1.5)
        mark(panels[1], case)
        panels[1].set(xlim=(case.low[0], case.high[0]))
        name(panels[1], "saddle", case.saddle, (28, -3))
        panels[1].set_title("2. Mean exit time from the worse basin", fontsize=11)
        figure.suptitle(f"SGD on the loss of a single neuron: {case.name}, learning rate {case.eta}", fontsize=13)
    fp.plot.save(figure, OUTPUT / f"neuron_{case.tag}.png")


def draw_series(case, r):
    """A filmstrip of the density over the loss."""
    chosen = (0, 4, 12, 32, len(EARLY) + 10, len(r["flow"]) - 1)
    fields = [on_grid(case, r["flow"][i]) for i in chosen]
    figure = None
    if comm.rank == 0:
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure

        x, y, _ = fields[0]
        loss = case.neuron.loss(np.stack(np.meshgrid(x, y)))
        norm = PowerNorm(0.5, 0, max(p.max() for _, _, p in fields[1:]))
        figure = Figure(figsize=(12, 6.2), layout="constrained")
        panels = figure.subplots(2, 3, sharex=True, sharey=True)
        for ax, i, (_, _, p) in zip(panels.flat, chosen, fields, strict=True):
            image = ax.pcolormesh(x, y, np.maximum(p, 0), norm=norm, cmap="BuPu", shading="gouraud", rasterized=True)
            ax.contour(x, y, loss, levels=np.linspace(loss.min(), loss.min() + 2, 33), colors="k", linewidths=0.2)
            ax.plot(*separatrix(case).T, "k--", lw=1)
            ax.set(title=f"after {r['flow'].times[i] / case.eta:.0f} steps", aspect="equal")
        figure.colorbar(image, ax=panels, label="density")
        figure.supxlabel("weight w₀")
        figure.supylabel("bias w₁")
    fp.plot.save(figure, OUTPUT / f"neuron_{case.tag}_series.png")


def draw_exit_times(results):
    """ln τ against 1/η: a straight line is an exponential law with a barrier."""
    figure = None
    if comm.rank == 0:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        ax = figure.subplots()
        for i, (case, r) in enumerate(results):
            eta, mean, _ = r["rows"].T
            ax.semilogy(1 / eta, mean / eta, f"C{i}o-", label=f"{case.name}: diffusion, from the PDE")
            t, error = r["simulated"]
            ax.errorbar(
                1 / eta[-1],
                t / eta[-1],
                3 * error / eta[-1],
                fmt=f"C{i}s",
                mfc="none",
                ms=9,
                capsize=4,
                label=f"{case.name}: diffusion, simulated",
            )
            ax.plot(1 / r["sgd"][:, 0], r["sgd"][:, 1] / r["sgd"][:, 0], f"C{i}^:", label=f"{case.name}: SGD itself")
        ax.set(
            xlabel="1 / learning rate",
            ylabel="mean number of steps until exit",
            title="Exit from the worse minimum",
            ylim=(40, None),
        )
        ax.legend(fontsize=9, loc="lower right")
    fp.plot.save(figure, OUTPUT / "neuron_exit_times.png")


def write_files(case, r, tau, limit):
    """For ParaView."""
    every = range(0, len(r["flow"]), 4)
    density = [{"density": r["flow"][i]} for i in every]
    fp.io.write(OUTPUT / f"neuron_{case.tag}_density.bp", density, r["flow"].times[::4])
    fp.io.write(OUTPUT / f"neuron_{case.tag}_exit.bp", tau)
    fp.io.write(OUTPUT / f"neuron_{case.tag}_limit.bp", limit["density"])


# # All of it


def check(case, r):
    """What the text above claims."""
    few = len(case.neuron.a) == 2
    assert np.abs(r["flow"].mass - 1).max() < 1e-8, "mass is conserved"
    assert r["peak"] > 0.85 and r["entered"] < r["t90"] < 2.5 * r["entered"], "SGD arrives soon after the gradient flow"
    assert r["away"][1] < 0.75 * r["away"][0], "the mean's distance from the gradient flow is due to noise"
    assert abs(r["rate"] / r["stiffness"] - 1) < 0.2, "the Hessian sets the pace of the end of the way"
    mean, spread = r["rows"].T[1:]
    assert r["change"] < 1e-4, "four digits of the exit times do not depend on the mesh"
    assert abs(spread[0] - 1) < 0.01, "rare exits are exponentially distributed"
    assert (np.diff(mean) < 0).all()
    assert abs(r["simulated"][0] - mean[-1]) < 4 * r["simulated"][1], "simulation agrees"
    assert 0.4 < r["decay"] * r["tau"] < 1, "paths that reach the separatrix may fall back, but not most of them"
    rough, fine = r["limits"]
    assert max(abs(rough["mass"] - 1), abs(fine["mass"] - 1)) < 1e-10
    assert abs(fine["walls"]) < (fine["negative"] / 10 if few else 1e-6), "the box is large enough"
    assert fine["negative"] < 0.5 * rough["negative"] < 0.05
    if few:
        assert abs(fine["worse"]) < fine["negative"], "what is left in the worse basin is below what is resolved"
    else:
        assert abs(fine["worse"] - rough["worse"]) < 1e-3 and 0.03 < fine["worse"] < 0.06


def study(case):
    coarse, _, rough = study_escape(case, 0.5)
    fine, tau, rows = study_escape(case, 0.25)
    boxes = [fp.Generator(case.process(), fp.Domain.rectangle(case.low, case.high, n)) for n in case.cells]
    r = study_drift(case, boxes[0], coarse)
    limits = [study_limit(case, gen) for gen in boxes]
    # how fast the mass of the worse basin decays once it has arrived
    worse, times = r["curves"]["worse"], r["flow"].times
    i, j = (int(np.argmax(times > f * rows[case.etas.index(case.eta), 1])) for f in (0.1, 1.0))
    remains = limits[0]["worse"]
    decay = np.log((worse[i] - remains) / (worse[j] - remains)) / (times[j] - times[i])
    r.update(
        rows=rows,
        change=np.abs(rough[:, 1] / rows[:, 1] - 1).max(),
        tau=tau.at(case.worse)[0],
        undershoot=comm.allreduce(tau.function.x.array.min(), op=MPI.MIN),
        limits=limits,
        decay=decay,
        simulated=simulate_diffusion(case, case.etas[-1], 1000, 0.01),
        sgd=np.array([(eta, *simulate_sgd(case, eta, 1000)) for eta in case.slow_etas]),
    )
    draw_overview(case, r, tau, limits[1])
    draw_series(case, r)
    write_files(case, r, tau, limits[1])
    for gen in (coarse, fine, *boxes):
        gen.destroy()
    return r


def report(case, r):
    eta, rows, limit = case.eta, r["rows"], r["limits"][1]
    say(
        f"\n{case.name}: loss {case.neuron.loss(case.better):.3f}, {case.neuron.loss(case.worse):.3f} at the minima, "
        f"{case.neuron.loss(case.saddle):.3f} at the saddle between them; learning rate {eta}"
    )
    say(
        f"  drift   {r['peak']:.1%} arrive near the worse minimum, 90 % of them by step {r['t90'] / eta:.0f}"
        f" (gradient flow: {r['entered'] / eta:.0f})"
    )
    say(f"          mean - gradient flow: at most {r['away'][0]:.3f}, with half the learning rate {r['away'][1]:.3f}")
    say(f"          rate at the end {r['rate']:.3f}, smallest eigenvalue of the Hessian {r['stiffness']:.3f}")
    say("  escape  learning rate   mean exit time      steps   deviation / mean")
    for row in rows:
        say(f"          {row[0]:13.2f} {row[1]:16.2f} {row[1] / row[0]:10.0f} {row[2]:12.3f}")
    say(f"          coarser mesh: at most {r['change']:.1e} apart; least value {r['undershoot']:.2g} at {eta}")
    t, error = r["simulated"]
    say(f"          at {case.etas[-1]}: simulated diffusion {t:.1f} ± {error:.1f} (one sigma)")
    for rate, t, error in r["sgd"]:
        ratio = t / rows[case.etas.index(rate), 1]
        say(f"          at {rate}: SGD itself {t:.0f} ± {error:.0f}, {ratio:.1f} times longer (noise not Gaussian)")
    say(
        f"  limit   mass {limit['worse']:.4f} in the worse basin (coarse mesh {r['limits'][0]['worse']:.4f}),"
        f" {limit['walls']:.0e} near the walls"
    )
    say(
        f"          not resolved: negative mass {limit['negative']:.1e} (coarse mesh {r['limits'][0]['negative']:.1e}),"
        f" smallest value {limit['minimum']:.2f} (largest {limit['maximum']:.1f})"
    )


def main():
    results = [(case, study(case)) for case in CASES]
    draw_exit_times(results)
    for case, r in results:
        report(case, r)
    for case, r in results:
        check(case, r)


if __name__ == "__main__":
    main()
