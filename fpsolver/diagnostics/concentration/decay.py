"""How the expected loss decays: predicted by the Łojasiewicz exponent, and measured on an evolution."""

from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem
from scipy.stats import t as student

from ..._answer import Answer
from ...evolution.evolution import Evolution
from ..landscape.lojasiewicz import Exponent

_FEWEST = 5


@dataclass(frozen=True, eq=False)
class LossDecay(Answer):
    """E f(t) − f* beside the law that the Łojasiewicz inequality gives to the gradient flow.

    f' = −|∇f|² ≤ −c² (f − f*)^{2θ}: exponential at the rate c² if θ = 1/2, else t^{−1/(2θ − 1)}.

    Attributes:
        times: shape (n,).
        excess: E f − f*, shape (n,).
        drift: E |∇f|² (E[−b·∇f] for other drifts), by which the drift lowers E f per time, shape (n,).
        noise: E D:∇∇f, by which the noise raises it, shape (n,).
        regime: where the drift rules (noise < drift/2), shape (n,); the plateau is where noise = drift.
        law: "exponential" or "algebraic".
        predicted: the rate c², or the power 1/(2θ − 1).
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

    Args:
        evolution: of :func:`~fpsolver.evolve`.
        exponent: of the minimum, from :func:`~fpsolver.diagnostics.lojasiewicz`.
        loss: scalar source; by default that of the evolution's process.

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
    table = _expectations(evolution, loss)
    excess, drift, noise = table[:, 0] - exponent.value * evolution.mass, table[:, 1], table[:, 2]
    if (excess <= 0).any():
        k = int(np.argmax(excess <= 0))
        raise ValueError(
            f"loss_decay: E f is {table[k, 0]:.6g} at t = {evolution.times[k]:g}, below the minimum "
            f"{exponent.value:.6g} of the exponent: mass is elsewhere, or the mesh is too coarse for it."
        )
    regime = (noise < 0.5 * drift) & (drift > 0)
    if exponent.exponential:
        measured = _rate((drift - noise)[regime] / excess[regime])
    else:
        measured = _power(np.log(excess[regime]), np.log((drift - noise)[regime]))
    return LossDecay(evolution.times, excess, drift, noise, regime, *predicted_decay(exponent), *measured)


def predicted_decay(exponent: Exponent) -> tuple[str, float, tuple[float, float]]:
    """Law, rate or power, and its interval: the first three of :class:`LossDecay` that need no evolution."""
    if exponent.exponential:
        rate = exponent.constant**2
        return "exponential", rate, (rate, float("inf"))
    low, high = exponent.interval
    power = lambda theta: 1 / (2 * theta - 1)  # noqa: E731
    return "algebraic", power(exponent.theta), (power(high), power(low))


def last_mean(evolution: Evolution) -> np.ndarray:
    """E X at the last time, shape (d,) (collective)."""
    gen = evolution.generator
    dx = ufl.dx(domain=gen.domain.mesh, metadata={"quadrature_degree": gen.degree + 1})
    x, p = ufl.SpatialCoordinate(gen.domain.mesh), evolution[len(evolution) - 1].raw
    forms = [fem.form(c * p * dx) for c in (1.0, *(x[i] for i in range(gen.domain.dim)))]
    mass, *moments = (gen.domain.comm.allreduce(fem.assemble_scalar(form), op=MPI.SUM) for form in forms)
    return np.array(moments).real / np.real(mass)


def _expectations(evolution: Evolution, loss: Any) -> np.ndarray:
    """E f, −E b·∇f and E D:∇∇f at each time, shape (n, 3) (collective)."""
    gen = evolution.generator
    f, c, p = _loss(gen.process, gen.weak.space, loss), gen.coefficients, fem.Function(gen.V)
    gradient, d = ufl.grad(f), gen.domain.dim
    b = c.beta + ufl.div(c.D)
    noise = sum(c.D[i, j] * gradient[i].dx(j) for i in range(d) for j in range(d))
    dx = ufl.dx(domain=gen.domain.mesh, metadata={"quadrature_degree": 2 * gen.degree + 8})
    forms = [fem.form(e * p * dx) for e in (f, -ufl.dot(b, gradient), noise)]
    rows = []
    for solution in evolution:
        p.x.array[:] = solution.raw.x.array
        rows.append([gen.domain.comm.allreduce(fem.assemble_scalar(form), op=MPI.SUM) for form in forms])
    return np.array(rows).real


def _loss(process: Any, space: Any, loss: Any) -> Any:
    found = process.loss_on(space) if loss is None else space.scalar(loss, "loss_decay: loss")
    if found is None or (loss is None and process.kinetic):
        raise TypeError(f"loss_decay: {type(process).__name__} has no loss; give it (loss=).")
    return found


def _rate(rates: np.ndarray) -> tuple[float, tuple[float, float]]:
    if len(rates) < _FEWEST:
        return float("nan"), (float("nan"), float("nan"))
    late = rates[len(rates) // 2 :]
    return float(np.median(late)), (float(late.min()), float(late.max()))


def _power(x: np.ndarray, y: np.ndarray) -> tuple[float, tuple[float, float]]:
    if len(x) < _FEWEST:
        return float("nan"), (float("nan"), float("nan"))
    late = slice(len(x) // 2 - (len(x) < 8), None)
    (all_, _), (s, error) = _line(x, y), _line(x[late], y[late])
    reach = error + abs(s - all_)
    low, high = s - reach, s + reach
    power = lambda slope: float(1 / (slope - 1)) if slope > 1 else float("inf")  # noqa: E731
    return power(s), (power(high), power(low))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    c = x - x.mean()
    s = float(c @ y / (c @ c))
    r, freedom = y - y.mean() - s * c, max(1, len(x) - 2)
    return s, float(student.ppf(0.975, freedom)) * float(np.sqrt(r @ r / freedom / (c @ c)))
