"""Transitions between two regions of a stationary process: rate and rate constants."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ufl

from .._answer import need_steps, steps_of, with_bar
from .._petsc import Options
from ..chain import Chain
from ..chain.equations import Operator, solve
from ..chain.refinement import MAX_UNKNOWNS, Numbers, to_accuracy
from ..discretisation.assembly import assemble_vector, to_vector
from ..discretisation.generator import Generator
from ..discretisation.metastable import capacity_solver
from ..discretisation.solution import Solution
from ..discretisation.solver import basis_integrals, exit_flux, exit_solver
from ..longtime.stationary import stationary
from ._stopped import Region, Size, stopped
from .regions import committor_of, over, two_regions


@dataclass(frozen=True)
class TransitionRate(Numbers):
    """Transitions between two regions of a stationary process (transition path theory).

    Attributes:
        rate: ν, transitions from A to B per unit time, as many as from B to A.
        capacity: ν times ``mass``; for a Gibbs process ∫ e^{U_min − U} ∇q·D∇q.
        mass: ∫ e^{U_min − U} in the ``weighted`` scheme, else one (the invariant density's).
        share_A: long-run share of time in which A was visited later than B.
        k_AB: rate constant ν / share_A: transitions to B per time in which the process comes from A.
        k_BA: ν / (1 − share_A).
        committor: probability of reaching B before A.
        sizes: of A and B on the mesh.
        error: error bar of the rate (collective when first asked for).
    """

    rate: float
    capacity: float
    mass: float
    share_A: float
    k_AB: float
    k_BA: float
    committor: Solution
    sizes: tuple[Size, Size]

    def numbers(self) -> npt.NDArray[np.float64]:
        """The rate."""
        return np.array([self.rate])

    @property
    def error(self) -> float:
        """Error bar of the rate."""
        return float(self.bars[0])

    def in_steps(self) -> "TransitionRate":
        """Rates per step of an algorithm (collective)."""
        unit = need_steps(steps_of(self.committor.generator.process), "this transition rate")
        rates = {name: unit * getattr(self, name) for name in ("rate", "capacity", "k_AB", "k_BA")}
        return self._in_unit(**rates)

    def __repr__(self) -> str:
        numbers = ("k_AB", "k_BA", "share_A", "capacity", "mass")
        rate = with_bar(self.rate, self.error) if "bars" in self.__dict__ else f"{self.rate:.6g}"
        return f"transition rate: {rate}; {', '.join(f'{name} {getattr(self, name):.6g}' for name in numbers)}"


def transition_rate(
    gen: Generator | Chain, A: Region, B: Region, *, rtol: float | None = None, max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
) -> TransitionRate:  # fmt: skip
    """Rate of transitions from A to B of the stationary process, reversible or not (collective).

    In the ``weighted`` scheme from the capacity between A and B, with full relative accuracy at any barrier.  Otherwise
    with the invariant density ρ: the part r of it that was in A later than in B solves the forward equation outside
    both, with data ρ on A and 0 on B, and ν is its flux into B (E, Vanden-Eijnden, J. Stat. Phys. 123, 2006).  Of a
    chain r = P*(r + ρ 1_A) outside both, and what the steps from A into B carry counts as well; parts of the boundary
    are no regions for it.  ``.error`` is the rate's error bar; with ``rtol`` all cells are refined until it meets it.
    ``options`` are PETSc's without the prefix ``fp_exit_``.

    Raises:
        ValueError: something absorbs, the invariant law is not unique, or as :func:`committor`.
    """
    if gen.absorbing:
        raise ValueError(f"transition_rate: {', '.join(gen.absorbing)} absorbs, so there is no stationary process.")

    def ask(other: Generator | Chain) -> TransitionRate:
        return _transition_rate(other, A, B, ask, options)

    return to_accuracy("transition_rate", gen, ask, "fp_exit_", rtol=rtol, max_unknowns=max_unknowns)


def _transition_rate(
    given: Generator | Chain, A: Region, B: Region, ask: Any, options: Options | None
) -> TransitionRate:
    gen, regions = two_regions(given, A, B)
    if isinstance(gen, Chain) and any(r.inside is None for r in regions):
        raise ValueError("transition_rate: a chain needs regions inside the domain: a marker or (point, radius).")
    inner, name = stopped(gen, regions), regions[1].name
    q = committor_of(inner, regions, options=options)
    mass = 1.0
    if isinstance(gen, Chain):
        assert regions[0].inside is not None
        source = gen.load(regions[0].inside, gen.vector(stationary(gen).raw))  # moments of ρ 1_A
        image = source.duplicate()
        inner.P.multTranspose(inner.inverse * source, image)
        later = solve(Operator(inner, transpose=True), image, "reactive law", options)[0] + source
        flux, mass_A = inner.exits[name].dot(inner.inverse * later) / gen.time_per_step, later.sum()
    elif gen.weak.scheme.by_capacities:
        flux = capacity_solver(inner, "committor", options).effective(*inner.absorbing)
        mass = float(basis_integrals(gen).sum())
        mass_A = mass - basis_integrals(gen).dot(to_vector(gen, q.function))
    else:
        rho = stationary(gen).raw
        v, from_A = ufl.TestFunction(gen.V), inner.territory.facets((regions[0].name,))
        source = assemble_vector(gen, inner.weak.exit_data(rho, v, from_A, forward=True))
        source.scale(-1.0)
        r = source.duplicate()
        exit_solver(inner, "committor", options).solve(source, r)
        flux, mass_A = exit_flux(inner, name).dot(r), basis_integrals(inner).dot(r)
        mass_A += 0.0 if isinstance(A, str) else over(gen, regions[0], rho)
    rate, share = float(flux) / mass, float(mass_A) / mass
    sizes = (regions[0].size, regions[1].size)
    constants = rate / share, rate / (1.0 - share)
    return TransitionRate(rate, float(flux), mass, share, *constants, q, sizes, generator=given, ask=ask)
