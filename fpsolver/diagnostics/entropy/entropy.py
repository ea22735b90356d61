"""Convergence in entropy: how far densities are from an invariant one, and how fast they approach it.

With h = p/p∞, for any drift, reversible or not, and any D ≥ 0:  d/dt ∫ p ln h = −∫ p ∇ln h·D∇ln h.
Where D degenerates the right-hand side may vanish at times (the entropy has plateaus) and the functional
∫ p ∇ln h·P∇ln h with a suitable P > 0 decays instead (Arnold, Erb, arXiv:1409.5425).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ufl
from dolfinx import fem

from ..._answer import Answer
from ..._log import logger
from ..._sample import largest, smallest
from ...discretisation.assembly import nodal_weight, to_density, to_vector
from ...discretisation.generator import Generator
from ...discretisation.solution import Solution
from ...evolution.evolution import Evolution
from ...evolution.initial import project
from ...models.fields import Space
from ..sampling import Array, Samples

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
        entropy_rate: dH/dt of the discrete solution, ∫ ln(h) ṗ with M ṗ = G p: no difference in time is taken.
        neglected: ∫ |p| over where p or p∞ is taken for error of the discretisation, below ten times its most negative
            value or 1e-14 of its largest; left out of the others, ``entropy`` takes p for zero there.
    """

    times: np.ndarray
    entropy: np.ndarray
    fisher: np.ndarray
    modified: np.ndarray | None
    l1: np.ndarray
    entropy_rate: np.ndarray
    neglected: np.ndarray

    def __repr__(self) -> str:
        head = f"{'t':>10} {'H':>11} {'I':>11} {'dH/dt + I':>11} {'L1':>11}"
        columns = [self.times, self.entropy, self.fisher, self.balance, self.l1]
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


def _functionals(gen: Generator, V: fem.FunctionSpace, p_inf: Any, P: Any) -> Callable[..., dict[str, float]]:
    """All functionals against p∞ of a density in V, with its time derivative if that is known."""
    mesh, d = gen.domain.mesh, gen.domain.dim
    space, points = Space(mesh, gen.degree, d), Samples.quadrature(mesh, 2 * gen.degree + 8)
    matrices = {"fisher": points.values(gen.coefficients.D)}
    if P is not None:
        matrices["modified"] = points.values(space.matrix(P, "entropy: P"))
    f = p_inf.raw if isinstance(p_inf, Solution) else p_inf
    computed = isinstance(f, fem.Function)
    f = space.tabulated(f, "p_inf", ()) if computed else space.scalar(f, "p_inf")
    table = points.values([f, *ufl.grad(f)])
    found, low, mass = table[..., 0], smallest(mesh.comm, table[..., 0]), points.integrate(table[..., 0])
    if not computed and not low >= 0:
        raise ValueError(f"p_inf is negative ({low:.3g}) somewhere on the domain.")
    if not 0 < mass < np.inf:
        raise ValueError(f"p_inf has mass {mass:.3g} on the domain; a positive one was expected.")
    known = found > (_floor(mesh.comm, found) if computed else 0.0)
    positive = np.where(known, found, mass) / mass
    q, gradient = np.where(known, positive, 0.0), table[..., 1:] / np.where(known, found, 1.0)[..., None]
    p, p_rate = fem.Function(V), fem.Function(V)
    density, derivative = points.compiled([p, *ufl.grad(p)]), points.compiled(p_rate)

    def measure(f: fem.Function, rate: fem.Function | None = None) -> dict[str, float]:
        p.x.array[:] = f.x.array
        table = density()
        raw = table[..., 0]
        used = (raw > _floor(mesh.comm, raw)) & known
        safe, kept = np.where(used, raw, 1.0), np.where(used, raw, 0.0)
        log = np.where(used, np.log(safe) - np.log(positive), 0.0)
        flux = np.where(used[..., None], table[..., 1:] - safe[..., None] * gradient, 0.0)
        integrands = {
            "entropy": kept * log - kept + q,
            "l1": np.abs(raw - q),
            "neglected": np.where(used, 0.0, np.abs(raw)),
        }
        for name, A in matrices.items():
            integrands[name] = np.einsum("cqi,cqij,cqj->cq", flux, A, flux) / safe
        if rate is not None:
            p_rate.x.array[:] = rate.x.array
            integrands["entropy_rate"] = log * derivative()
        return {name: points.integrate(values) for name, values in integrands.items()}

    return measure


def _floor(comm: Any, values: Array) -> float:
    """Below this a density is error of the discretisation."""
    return max(_TINY * largest(comm, values), -_NOISE * smallest(comm, values))


def entropy_decay(evolution: Evolution, p_inf: Any, *, P: Any = None) -> EntropyDecay:
    """Relative entropy, Fisher information and other distances of an evolution from equilibrium (collective).

    ``p_inf`` is what :func:`fpsolver.stationary` gave, a ``Function``, or any positive multiple of it as
    a callable of all coordinates giving UFL; it is normalised to mass one on the domain.  P, (d, d), is constant or
    a callable of all coordinates; for linear drift see :func:`~fpsolver.diagnostics.arnold_erb_matrix`.

    Raises:
        ValueError: something absorbs; not densities; unsuitable ``p_inf`` or ``P``.
    """
    if not isinstance(evolution, Evolution) or evolution.name != "density" or not len(evolution):
        raise ValueError("entropy_decay: an evolution of densities was expected, from fp.evolve.")
    gen = evolution.generator
    if gen.absorbing:
        raise ValueError(f"entropy_decay: mass leaves through {', '.join(gen.absorbing)}; no part may absorb.")
    measure = _functionals(gen, gen.V, p_inf, P)
    rows = [measure(s.raw, _time_derivative(gen, s.raw)) for s in evolution]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    _warn(columns["neglected"].max())
    return EntropyDecay(times=evolution.times, modified=columns.pop("modified", None), **columns)


def entropy_balance(evolution: Evolution, p_inf: Any) -> np.ndarray:
    """Residual of dH/dt + I = 0 at each time, as of :func:`entropy_decay`, shape (n,) (collective)."""
    return entropy_decay(evolution, p_inf).balance


def relative_entropy(gen: Generator, p: Any, p_inf: Any) -> float:
    """H = ∫ p ln(p/p∞) − p + p∞ of a ``Solution`` or ``Function``, p∞ as in :func:`entropy_decay` (collective)."""
    return _single(gen, p, p_inf, None)["entropy"]


def fisher_information(gen: Generator, p: Any, p_inf: Any, *, P: Any = None) -> float:
    """∫ p ∇ln h·P∇ln h with h = p/p∞, P = D unless given; everything as in :func:`relative_entropy` (collective)."""
    return _single(gen, p, p_inf, P)["fisher" if P is None else "modified"]


def _single(gen: Generator, p: Any, p_inf: Any, P: Any) -> dict[str, float]:
    f = p.raw if isinstance(p, Solution) else p
    if not isinstance(f, fem.Function) or f.function_space.mesh != gen.domain.mesh:
        raise ValueError("entropy: p is no Solution or dolfinx Function on the mesh of the generator.")
    found = _functionals(gen, f.function_space, p_inf, P)(f)
    _warn(found["neglected"])
    return found


def _warn(neglected: float) -> None:
    if neglected > 1e-3:
        logger.warning("entropy: %.2g of the mass is where the density is not resolved, and is left out", neglected)


def _time_derivative(gen: Generator, f: fem.Function) -> fem.Function:
    """ṗ with M ṗ = G p; in the weighted scheme for the unknown p/w."""
    unknown = to_vector(gen, f)
    if not gen.weak.scheme.unknown_is_density:
        unknown.array_w[:] = unknown.array_r / nodal_weight(gen)[: unknown.local_size]
    load = gen.G.createVecLeft()
    gen.G.mult(unknown, load)
    return to_density(gen, project(gen, load), "density_rate")
