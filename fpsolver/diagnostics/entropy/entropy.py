"""Convergence in entropy: how far densities are from an invariant one, and how fast they approach it.

With h = p/p∞, for any drift, reversible or not, and any D ≥ 0:  d/dt ∫ p ln h = −∫ p ∇ln h·D∇ln h.
Where D degenerates the right-hand side may vanish at times (the entropy has plateaus) and the functional
∫ p ∇ln h·P∇ln h with a suitable P > 0 decays instead (Arnold, Erb, arXiv:1409.5425).
"""

from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem

from ..._answer import Answer
from ..._errors import agree
from ..._log import logger
from ...discretisation.assembly import nodal_weight, to_density, to_vector
from ...discretisation.generator import Generator
from ...discretisation.solution import Solution
from ...evolution.evolution import Evolution
from ...evolution.initial import project
from ...models.fields import Space, is_number
from ..quadrature import Array, Quadrature

_TINY = 1e-14  # of the maximum: below it a density is rounding
_NOISE = 10.0  # times the most negative value: below it a density is error of the discretisation


@dataclass(frozen=True)
class EntropyDecay(Answer):
    """Distances of p(t) from p∞ at n times; all arrays of shape (n,).

    Attributes:
        times: t.
        entropy: H = ∫ p ln(p/p∞) − p + p∞, which is the relative entropy where both have mass one.
        fisher: I = ∫ p ∇ln h·D∇ln h, h = p/p∞.
        modified: S_P = ∫ p ∇ln h·P∇ln h; None without P.
        l1: ∫ |p − p∞|.
        chi_squared: ∫ (p − p∞)²/p∞.
        entropy_rate: dH/dt of the discrete solution, ∫ ln(h) ṗ with M ṗ = G p: no difference in time is taken.
        threshold: densities below this are taken for error of the discretisation: ten times the most negative value of
            p, or 1e-14 of the largest, unless given.
        neglected: ∫ |p| over where p is below the threshold, or p∞ not above its own; left out of ``fisher``,
            ``modified`` and ``entropy_rate``.  ``entropy`` and ``chi_squared`` take p for zero where it is below.
    """

    times: np.ndarray
    entropy: np.ndarray
    fisher: np.ndarray
    modified: np.ndarray | None
    l1: np.ndarray
    chi_squared: np.ndarray
    entropy_rate: np.ndarray
    threshold: np.ndarray
    neglected: np.ndarray

    def __repr__(self) -> str:
        head = f"{'t':>10} {'H':>11} {'I':>11} {'dH/dt + I':>11} {'L1':>11} {'chi^2':>11}"
        columns = [self.times, self.entropy, self.fisher, self.balance, self.l1, self.chi_squared]
        if self.modified is not None:
            head, columns = head + f" {'S_P':>11}", [*columns, self.modified]
        rows = zip(*columns, strict=True)
        return "\n".join([head, *(f"{t:10.4g} " + " ".join(f"{v:11.4e}" for v in row) for t, *row in rows)])

    @property
    def balance(self) -> np.ndarray:
        """Residual of dH/dt + I = 0, shape (n,); zero but for the discretisation in space."""
        return self.entropy_rate + self.fisher

    @property
    def rate(self) -> np.ndarray:
        """Observed rate −d ln H/dt at each time, shape (n,)."""
        return -self.entropy_rate / self.entropy

    @property
    def modified_rate(self) -> np.ndarray:
        """−Δ ln S_P/Δt between consecutive times, shape (n − 1,)."""
        if self.modified is None:
            raise ValueError("modified_rate: there was no P; give one by entropy_decay(..., P=).")
        return -np.diff(np.log(self.modified)) / np.diff(self.times)


class _Reference:
    """p∞ with its logarithmic gradient, D and P at quadrature points."""

    def __init__(self, gen: Generator, p_inf: Any, P: Any, degree: int):
        mesh = gen.domain.mesh
        self.points = points = Quadrature.of(mesh, degree)
        self.D = points.expression(gen.coefficients.D)
        space = Space(mesh, gen.degree, mesh.geometry.dim)
        self.P = None if P is None else points.expression(space.matrix(P, "entropy: P"))
        f = p_inf.raw if isinstance(p_inf, Solution) else p_inf
        if isinstance(f, fem.Function):
            _check_function(f, mesh, "p_inf")
            q, gradient = points.values(f), points.gradients(f)
            low, high = _range(mesh.comm, q)
            floor = max(_TINY * high, -_NOISE * low)
        else:
            expression = space.scalar(f, "p_inf")
            table = points.expression(ufl.as_vector([expression, *ufl.grad(expression)]))
            q, gradient, floor = table[..., 0], table[..., 1:], 0.0
            low, _ = _range(mesh.comm, q)
            agree(mesh.comm, None if low >= 0 else f"p_inf is negative ({low:.3g}) somewhere on the domain.")
        mass = points.integrate(q)
        good = np.isfinite(mass) and mass > 0
        agree(mesh.comm, None if good else f"p_inf has mass {mass:.3g} on the domain; a positive one was expected.")
        self.known = q > floor
        self.q = np.where(self.known, q, 0.0) / mass
        self.log = np.log(np.where(self.known, self.q, 1.0))
        self.gradient = gradient / np.where(self.known, q, 1.0)[..., None]

    def measure(self, f: fem.Function, rate: fem.Function | None, threshold: float | None) -> dict[str, float]:
        """All functionals of one density."""
        points, q = self.points, self.q
        raw = points.values(f)
        low, high = _range(points.mesh.comm, raw)
        floor = max(_TINY * high, -_NOISE * low) if threshold is None else threshold
        used = (raw > floor) & self.known
        p = np.where(used, raw, 0.0)
        safe = np.where(used, raw, 1.0)
        log = np.where(used, np.log(safe) - self.log, 0.0)
        flux = np.where(used[..., None], points.gradients(f) - safe[..., None] * self.gradient, 0.0)
        quadratic = lambda A: points.integrate(np.einsum("cqi,cqij,cqj->cq", flux, A, flux) / safe)  # noqa: E731
        small = raw <= floor
        answer = {
            "entropy": points.integrate(p * log - p + q),
            "fisher": quadratic(self.D),
            "l1": points.integrate(np.abs(raw - q)),
            "chi_squared": points.integrate(
                np.where(self.known, (np.where(small, 0.0, raw) - q) ** 2 / np.where(self.known, q, 1.0), 0.0)
            ),
            "threshold": floor,
            "neglected": points.integrate(np.where(used, 0.0, np.abs(raw))),
        }
        if self.P is not None:
            answer["modified"] = quadratic(self.P)
        if rate is not None:
            answer["entropy_rate"] = points.integrate(log * points.values(rate))
        return answer


def entropy_decay(
    evolution: Evolution,
    p_inf: Any,
    *,
    P: Any = None,
    threshold: float | None = None,
    quadrature: int | None = None,
) -> EntropyDecay:
    """Relative entropy, Fisher information and other distances of an evolution from equilibrium (collective).

    Args:
        evolution: densities of a process that nothing absorbs.
        p_inf: invariant density: what :func:`fpsolver.stationary` gave, a ``Function``, or any positive multiple
            of it as a callable of all coordinates giving UFL; it is normalised to mass one on the domain.
        P: matrix of the modified functional, shape (d, d), constant or a callable of all coordinates; for linear drift
            see :func:`~fpsolver.diagnostics.arnold_erb_matrix`.
        threshold: value below which p is left out; see :class:`EntropyDecay`.
        quadrature: degree of the quadrature; by default 2k + 8.

    Raises:
        ValueError: something absorbs; not densities; unsuitable ``p_inf``, ``P`` or ``threshold``.
    """
    gen = evolution.generator
    _check(evolution, threshold)
    reference = _Reference(gen, p_inf, P, quadrature or 2 * gen.degree + 8)
    rows = [reference.measure(s.raw, _time_derivative(gen, s.raw), threshold) for s in evolution]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    worst = int(np.argmax(columns["neglected"]))
    if columns["neglected"][worst] > 1e-3:
        logger.warning(
            "entropy: %.2g of the mass at t = %.4g is where the density is not resolved, and is left out",
            columns["neglected"][worst], evolution.times[worst],
        )  # fmt: skip
    return EntropyDecay(times=evolution.times, modified=columns.pop("modified", None), **columns)


def entropy_balance(evolution: Evolution, p_inf: Any, *, quadrature: int | None = None) -> np.ndarray:
    """Residual of dH/dt + I_D = 0 at each time, shape (n,) (collective).

    dH/dt = ∫ ln(p/p∞) ṗ with M ṗ = G p, so that nothing but the discretisation in space contributes.  Arguments and
    errors are those of :func:`entropy_decay`.
    """
    return entropy_decay(evolution, p_inf, quadrature=quadrature).balance


@dataclass(frozen=True)
class Functional(Answer):
    """A functional of a density.

    Attributes:
        value: of it.
        neglected: mass ∫|p| that was left out as unresolved.
    """

    value: float
    neglected: float

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"{self.value:.8g}, without a mass of {self.neglected:.2g} that is not resolved"


def relative_entropy(gen: Generator, p: Any, p_inf: Any, *, threshold: float | None = None) -> Functional:
    """H(p|p∞) = ∫ p ln(p/p∞) − p + p∞ (collective).

    Args:
        gen: generator on whose domain they live.
        p: a ``Solution`` or a ``Function``.
        p_inf: as for :func:`entropy_decay`.
        threshold: as for :func:`entropy_decay`.
    """
    found = _single(gen, p, p_inf, None, threshold)
    return Functional(found["entropy"], found["neglected"])


def fisher_information(
    gen: Generator, p: Any, p_inf: Any, *, P: Any = None, threshold: float | None = None
) -> Functional:
    """∫ p ∇ln h·P∇ln h with h = p/p∞ (collective).

    Args:
        gen: generator on whose domain they live.
        p: a ``Solution`` or a ``Function``.
        p_inf: as for :func:`entropy_decay`.
        P: matrix, constant or a callable of all coordinates; D without.
        threshold: as for :func:`entropy_decay`.
    """
    found = _single(gen, p, p_inf, P, threshold)
    return Functional(found["fisher" if P is None else "modified"], found["neglected"])


def _single(gen: Generator, p: Any, p_inf: Any, P: Any, threshold: float | None) -> dict[str, float]:
    f = p.raw if isinstance(p, Solution) else p
    if not isinstance(f, fem.Function):
        raise ValueError(f"entropy: p is a {type(p).__name__}; a Solution or a dolfinx Function was expected.")
    _check_function(f, gen.domain.mesh, "p")
    return _Reference(gen, p_inf, P, 2 * gen.degree + 8).measure(f, None, threshold)


def _check(evolution: Evolution, threshold: Any) -> None:
    if not isinstance(evolution, Evolution) or evolution.name != "density" or not len(evolution):
        raise ValueError("entropy_decay: an evolution of densities was expected, from fp.evolve.")
    if evolution.generator.absorbing:
        raise ValueError(
            f"entropy_decay: mass leaves through {', '.join(evolution.generator.absorbing)}; relative entropy to an "
            "invariant density needs a generator without absorbing parts."
        )
    if threshold is not None and not (is_number(threshold) and threshold >= 0):
        raise ValueError(f"entropy: threshold is {threshold!r}; a non-negative number was expected.")


def _check_function(f: fem.Function, mesh: Any, what: str) -> None:
    if f.function_space.mesh != mesh:
        raise ValueError(f"{what}: the Function lives on another mesh than the generator's; interpolate it first.")


def _range(comm: MPI.Comm, values: Array) -> tuple[float, float]:
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    return comm.allreduce(low, op=MPI.MIN), comm.allreduce(high, op=MPI.MAX)


def _time_derivative(gen: Generator, f: fem.Function) -> fem.Function:
    """ṗ with M ṗ = G p; in the weighted scheme for the unknown p/w."""
    unknown = to_vector(gen, f)
    if not gen.weak.scheme.unknown_is_density:
        unknown.array_w[:] = unknown.array_r / nodal_weight(gen)[: unknown.local_size]
    load = gen.G.createVecLeft()
    gen.G.mult(unknown, load)
    derivative = project(gen, load)
    answer = to_density(gen, derivative, "density_rate")
    for v in (unknown, load, derivative):
        v.destroy()
    return answer
