"""The equation behind an evolution, M v' = G v or its dual, and how far an evolution has come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from petsc4py import PETSc

import numpy as np

from .._petsc import Options
from ..discretisation.fluxes import basis_integrals, exit_flux, total_flux
from ..discretisation.generator import Generator, derived
from ..discretisation.solver import Key, merged
from ._expm import LEAST, Propagator, Snapshot, Stats


@dataclass
class State:
    """How far an evolution has come; the vectors belong to it.

    Attributes:
        start: vector at time 0.
        v: vector at time ``t``.
        integrals: of the functionals over (0, t).
        spent: estimated error so far.
    """

    start: PETSc.Vec
    v: PETSc.Vec
    integrals: np.ndarray
    t: float = 0.0
    spent: float = 0.0

    @classmethod
    def at_start(cls, v0: PETSc.Vec, parts: Sequence[str]) -> "State":
        """At time 0, with an integral for all absorbing parts together and for each of them; ``v0`` is taken over."""
        return cls(v0, v0.copy(), np.zeros(len(parts) + 1 if parts else 0))

    def advance(self, t: float, v: PETSc.Vec, integrals: np.ndarray) -> None:
        """Go to time ``t``; ``v`` is taken over."""
        self.v.destroy()
        self.t, self.v, self.integrals = t, v, integrals

    def destroy(self) -> None:
        """Free the vectors."""
        self.start.destroy()
        self.v.destroy()


def propagator(gen: Generator, options: Options | None = None) -> Propagator:
    """The generator's propagator, with the factorisations that earlier evolutions made (collective)."""
    return _propagator(gen, merged(gen, options))


@derived
def _propagator(gen: Generator, options: Key) -> Propagator:
    return Propagator(gen.M, gen.G, dim=gen.domain.dim, options=dict(options), leaks=bool(gen.absorbing))


def functionals(gen: Generator, parts: Sequence[str]) -> list[PETSc.Vec]:
    """Outflux in all and through each absorbing part."""
    return [total_flux(gen), *(exit_flux(gen, part) for part in parts)] if parts else []


def initial_mass(gen: Generator, state: State) -> float:
    """Integrals' errors are relative to the mass at the beginning, or to the integral where that is larger."""
    mass = abs(state.start.dot(basis_integrals(gen)))
    return mass if mass > 0 else 1.0


class Autonomous:
    """M v' = G v, or M v' = Gᵀ v for the dual equation (collective).

    Args:
        gen: generator.
        parts: absorbing parts whose outflux is wanted; the total comes first.
        options: PETSc options without the prefix ``fp_evolve_``.
    """

    def __init__(self, gen: Generator, parts: Sequence[str], options: Options | None):
        self.gen, self.parts = gen, list(parts)
        self._core = propagator(gen, options)
        self._core.stats = Stats()

    def forward(self, state: State, times: Sequence[float], tol: float) -> Iterator[Snapshot]:
        """Yield the solution at each time."""
        return self._run(state, times, tol, transpose=False)

    def dual(self, state: State, times: Sequence[float], tol: float) -> Iterator[Snapshot]:
        """Yield the solution of the dual equation at each time."""
        return self._run(state, times, tol, transpose=True)

    def _run(self, state: State, times: Sequence[float], tol: float, transpose: bool) -> Iterator[Snapshot]:
        flux = functionals(self.gen, self.parts)
        scales = [initial_mass(self.gen, state)] * len(flux)
        left = max(tol - state.spent, LEAST) if state.spent else tol  # too small a tol is told there
        run = self._core.run(state.v, [t - state.t for t in times], left, transpose, flux, scales)
        for t, snapshot in zip(times, run, strict=True):
            yield Snapshot(t, snapshot.vector, state.integrals + snapshot.integrals, snapshot.values)

    @property
    def error(self) -> float:
        """Estimated error of what this object has computed."""
        return self._core.stats.error

    def work(self) -> dict[str, Any]:
        """What it cost, for answers."""
        return work_of(self._core.stats)

    def signature(self, horizon: float) -> dict[str, Any]:
        """What tells this equation from others with the same generator."""
        return {}

    def destroy(self) -> None:
        """The propagator belongs to the generator."""


def work_of(s: Stats) -> dict[str, Any]:
    """Statistics as they are reported."""
    return {
        "solves": s.solves, "factorisations": s.factorisations, "steps": s.steps, "basis": s.basis,
        "time_error": s.error,
    }  # fmt: skip
