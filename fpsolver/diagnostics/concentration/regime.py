"""Drift against diffusion: which of the two rules, where and until when, and how the expected loss decays meanwhile."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import ufl
from dolfinx import fem
from scipy import stats

from ... import _compat
from ..._answer import Answer
from ..._arguments import check_positive
from ..._errors import agree
from ..._sample import largest
from ...discretisation.generator import Generator
from ...discretisation.solution import Solution
from ...discretisation.solver import statistics
from ...evolution.evolution import Evolution
from ..landscape.lojasiewicz import Exponent
from ..sampling import Array, Samples, ito_drift

_LARGEST = 1e12
_FEWEST = 5


def loss_expression(gen: Generator, loss: Any, what: str) -> Any:
    """A given loss, or that of the process, as UFL on the generator's mesh; None if there is none."""
    if loss is not None:
        return gen.process.space(gen.domain.mesh, gen.degree, gen.domain.dim).scalar(loss, what)
    return gen.process.loss_on(gen.process.space(gen.domain.mesh, gen.degree))


def rates_of(gen: Generator, f: Any) -> list[Any]:
    """b·∇f and D:∇∇f, the two parts of Lf, as UFL on the generator's mesh."""
    c = gen.coefficients
    return [ufl.dot(ito_drift(c), ufl.grad(f)), ufl.inner(c.D, ufl.grad(ufl.grad(f)))]


def loss_moments(evolution: Evolution, f: Any, what: str) -> Array:
    """Mean and variance of f, ∫ b·∇f p and ∫ D:∇∇f p at each time, shape (4, n) (collective)."""
    gen = evolution.generator
    samples, p = Samples.quadrature(gen.domain.mesh, 2 * gen.degree + 8), fem.Function(gen.V)
    values, density = samples.values([f, *rates_of(gen, f)]), samples.compiled(p)
    finite = bool(np.isfinite(values).all())
    agree(gen.domain.comm, None if finite else f"{what}: the loss or its derivatives are not finite.")
    rows = []
    for solution in evolution:
        p.x.array[:] = solution.raw.x.array
        table = density()
        mass, first, drift, diffusion = (samples.integrate(g * table) for g in (1.0, *np.moveaxis(values, -1, 0)))
        variance = samples.integrate((values[..., 0] - first / mass) ** 2 * table) / mass
        rows.append([first / mass, variance, drift, diffusion])
    return np.array(rows).T


def regime_indicator(gen: Generator, *, loss: Any = None) -> Solution:
    """|b·∇f| / |D:∇∇f|, one value per cell: above one drift rules, below one diffusion (collective).

    For SGD this is |∇f|² / ((η/2B) |Σ:∇∇f|), taken at the midpoints of the cells, at most 1e12 where nothing diffuses.
    ``loss`` is a scalar source f of all coordinates; by default that of the process.

    Raises:
        ValueError: the process has no loss and none is given.
    """
    f = loss_expression(gen, loss, "regime_indicator: loss")
    if f is None:
        raise ValueError(f"regime_indicator: {type(gen.process).__name__} has no loss; give one by loss=.")
    drift, diffusion = (abs(rate) for rate in rates_of(gen, f))
    V = fem.functionspace(gen.domain.mesh, ("DG", 0))
    function = fem.Function(V)
    ratio = drift / ufl.max_value(diffusion, drift / _LARGEST + 1e-300)
    function.interpolate(fem.Expression(ratio, _compat.interpolation_points(V.element)))
    return Solution(function, statistics(gen), "regime indicator")


def shadowing_time(gen: Generator, *, distance: float = 1.0) -> float:
    """How long the law provably stays within ``distance`` of that of the noiseless flow, in W₂ (collective).

    With sym ∇b ≤ K and S = sup tr 2D over the mesh (both measured at quadrature points), coupling X with the flow from
    the same point gives W₂² ≤ S (e^{2Kt} − 1)/2K, hence t = ln(1 + 2K distance²/S)/2K, which for SGD grows
    like ln(1/η)/2K.  Infinite if the bound never reaches ``distance``.
    """
    square = check_positive("shadowing_time: distance", distance) ** 2
    samples, c = Samples.quadrature(gen.domain.mesh, max(4, gen.degree)), gen.coefficients
    jacobian = samples.values(ufl.sym(ufl.grad(ito_drift(c))))
    K = largest(gen.domain.comm, np.linalg.eigvalsh(jacobian)[..., -1])
    S = largest(gen.domain.comm, 2 * samples.values(ufl.tr(c.D)))
    if S <= 0 or 1 + 2 * K * square / S <= 0:
        return float(np.inf)
    return float(square / S if abs(K) * square < 1e-12 * S else np.log1p(2 * K * square / S) / (2 * K))


@dataclass(frozen=True, eq=False)
class LossDecay(Answer):
    """E f(t) − f* beside the law that the Łojasiewicz inequality gives to the gradient flow.

    f' = −|∇f|² ≤ −c² (f − f*)^{2θ}: exponential at the rate c² if θ = 1/2, else t^{−1/(2θ − 1)}.

    Attributes:
        times, excess: t and E f − f*, shape (n,).
        drift: E |∇f|² (E[−b·∇f] for other drifts), by which the drift lowers E f per time, shape (n,).
        noise: E D:∇∇f, by which the noise raises it, shape (n,).
        regime: where the drift rules (noise < drift/2), shape (n,); the plateau is where noise = drift.
        law, predicted: "exponential" and the rate c², or "algebraic" and the power 1/(2θ − 1).
        predicted_interval: from that of θ; of a rate, a lower bound and inf.
        measured: the rate (drift − noise)/excess over the later half of the regime, or the power 1/(s − 1) with s the
            slope of log (drift − noise) over log excess there; nan if the drift rules at less than five times.
        measured_interval: range of the rates, or the 95 % interval of the regression and what the earlier half changes.
    """

    times: np.ndarray
    excess: np.ndarray
    drift: np.ndarray
    noise: np.ndarray
    regime: np.ndarray
    law: str
    predicted: float
    predicted_interval: tuple[float, float]
    measured: float
    measured_interval: tuple[float, float]

    def __repr__(self) -> str:
        name = "rate" if self.law == "exponential" else "power of 1/t"
        (a, b), (c, d) = self.predicted_interval, self.measured_interval
        rows = [
            f"{self.law} decay, {name}: predicted {self.predicted:.4g} [{a:.4g}, {b:.4g}], "
            f"measured {self.measured:.4g} [{c:.4g}, {d:.4g}]",
            f"{'t':>10} {'E f - f*':>12} {'drift':>12} {'noise':>12}",
        ]
        table = zip(self.times, self.excess, self.drift, self.noise, self.regime, strict=True)
        rows += [f"{t:10.4g} {e:12.4e} {g:12.4e} {n:12.4e}{'' if r else '  noise rules'}" for t, e, g, n, r in table]
        return "\n".join(rows)


def loss_decay(evolution: Evolution, exponent: Exponent, *, loss: Any = None) -> LossDecay:
    """Decay of the expected loss along an evolution whose mass stays near one minimum (collective).

    By Itô's formula d/dt E f = E[b·∇f + D:∇∇f], so that the decay is measured at each time by itself, without
    differences in time, as long as no mass meets a wall.

    ``exponent`` is that of the minimum, from :func:`~fpsolver.diagnostics.lojasiewicz`; ``loss`` a scalar source, by
    default that of the evolution's process.

    Raises:
        TypeError: no evolution of a density, or a process without a loss.
        ValueError: mass is lost, or E f falls below f*.
    """
    if not isinstance(evolution, Evolution) or evolution.name != "density":
        raise TypeError("loss_decay: an evolution of a density, from fp.evolve, was expected.")
    if np.ptp(np.append(evolution.mass, 1.0)) > 1e-3:
        raise ValueError(
            f"loss_decay: the mass falls to {evolution.mass.min():.4g}; E f of what is left says nothing about the "
            "decay at a minimum. Use a domain without absorbing parts, or earlier times."
        )
    gen, process = evolution.generator, evolution.generator.process
    f = None if loss is None and process.kinetic else loss_expression(gen, loss, "loss_decay: loss")
    if f is None:
        raise TypeError(f"loss_decay: {type(process).__name__} has no loss; give it (loss=).")
    mean, _, drift, noise = loss_moments(evolution, f, "loss_decay")
    excess, drift = (mean - exponent.value) * evolution.mass, -drift
    if (excess <= 0).any():
        k = int(np.argmax(excess <= 0))
        raise ValueError(
            f"loss_decay: E f is {mean[k]:.6g} at t = {evolution.times[k]:g}, below the minimum "
            f"{exponent.value:.6g} of the exponent: mass is elsewhere, or the mesh is too coarse for it."
        )
    regime = (noise < 0.5 * drift) & (drift > 0)
    x, rate = excess[regime], (drift - noise)[regime]
    law, predicted, interval = "exponential", exponent.constant**2, (exponent.constant**2, float("inf"))
    if not exponent.exponential:
        predicted, high, low = (1 / (2 * theta - 1) for theta in (exponent.theta, *exponent.interval))
        law, interval = "algebraic", (low, high)
    if len(x) < _FEWEST:
        measured = float("nan"), (float("nan"), float("nan"))
    elif exponent.exponential:
        late = (rate / x)[len(x) // 2 :]
        measured = float(np.median(late)), (float(late.min()), float(late.max()))
    else:
        measured = _power(np.log(x), np.log(rate))
    return LossDecay(evolution.times, excess, drift, noise, regime, law, predicted, interval, *measured)


def _power(x: np.ndarray, y: np.ndarray) -> tuple[float, tuple[float, float]]:
    """1/(s − 1) with s the slope of y over x in the later half, and its interval."""
    late = slice(len(x) // 2 - (len(x) < 8), None)
    whole, fit = stats.linregress(x, y), stats.linregress(x[late], y[late])
    s, freedom = fit.slope, max(1, len(x[late]) - 2)
    reach = stats.t.ppf(0.975, freedom) * fit.stderr + abs(s - whole.slope)
    value, low, high = (float(1 / (slope - 1)) if slope > 1 else float("inf") for slope in (s, s + reach, s - reach))
    return value, (low, high)
