"""Named regions inside a domain: committors, transition rates, mean first-passage times between them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import mesh as dmesh

from .._answer import Answer, need_steps, steps_of
from .._petsc import Options
from ..chain import Chain
from ..chain.equations import occupation
from ..discretisation.assembly import assemble_vector, to_vector
from ..discretisation.fluxes import basis_integrals, exit_flux
from ..discretisation.generator import Generator
from ..discretisation.metastable import capacity_solver
from ..discretisation.solution import Solution
from ..discretisation.solver import exit_solver
from ..longtime.stationary import stationary
from ._stopped import Region, Resolved, Size, fitted, resolve, stopped, total
from .adapt import MAX_UNKNOWNS
from .exit import feynman_kac


def _over(gen: Generator, region: Resolved, integrand: Any) -> float:
    """∫ over a region's cells, or over its facets (collective)."""
    if not gen.domain.comm.allreduce(int(region.cells.any()), op=MPI.MAX):
        tags = dmesh.meshtags(gen.domain.mesh, gen.domain.dim - 1, region.facets, np.ones_like(region.facets))
        return total(
            gen.domain.comm, integrand * ufl.Measure("ds", gen.domain.mesh, subdomain_data=tags, subdomain_id=1)
        )
    cells = np.flatnonzero(region.cells).astype(np.int32)
    tags = dmesh.meshtags(gen.domain.mesh, gen.domain.dim, cells, np.ones_like(cells))
    metadata = {"quadrature_degree": gen.weak.quadrature}
    return total(gen.domain.comm, integrand * ufl.Measure("dx", gen.domain.mesh, 1, metadata, tags))


@dataclass(frozen=True)
class FirstPassage(Answer):
    """Mean first-passage times between regions.

    Attributes:
        names: of the regions.
        times: times[i, j] is the mean time to reach region j from region i, shape (n, n), zero on the diagonal.
        solutions: for each target the mean time from everywhere; ``solutions["B"].at(points)``.
        sizes: for each region its :class:`Size` on the mesh.
    """

    names: tuple[str, ...]
    times: npt.NDArray[np.float64]
    solutions: dict[str, Solution]
    sizes: dict[str, Size]

    def in_steps(self) -> "FirstPassage":
        """Mean numbers of steps of an algorithm (collective)."""
        solutions = {name: tau.in_steps() for name, tau in self.solutions.items()}
        process = next(iter(self.solutions.values())).generator.process
        return replace(self, solutions=solutions, times=self.times / process.time_per_step)

    def __repr__(self) -> str:
        width = max(10, *(len(name) for name in self.names))
        rows = [" ".join([" " * width, *(f"{name:>{width}}" for name in self.names)])]
        for i, name in enumerate(self.names):
            rows.append(" ".join([f"{name:>{width}}", *(f"{t:{width}.6g}" for t in self.times[i].tolist())]))
        return "mean time from (row) to (column)\n" + "\n".join(rows)


def first_passage(
    gen: Generator | Chain, regions: Mapping[str, Region], *, options: Options | None = None
) -> FirstPassage:
    """Mean first-passage times between named regions: one factorisation and one solve for each target (collective).

    Of at least two regions (see :data:`Region`), one given as (point, radius) is left from its point; one given by a
    marker, from the uniform law in its cells; a boundary part, from the uniform law on it, which chains cannot.  A
    chain has arrived when a step ends in the target.  ``options`` are PETSc's without the prefix ``fp_exit_``.

    Raises:
        ValueError: something absorbs, fewer than two regions, or as :func:`resolve` says.
        NotConverged: a target is not reached, or only in times that double precision does not resolve.
    """
    if gen.absorbing:
        raise ValueError(
            f"first_passage: {', '.join(gen.absorbing)} absorbs, so a region may never be reached; build the "
            f"{type(gen).__name__.lower()} without absorbing parts, or ask for exit_probability."
        )
    if not isinstance(regions, Mapping):
        raise TypeError(f"first_passage: regions is {regions!r}; a dictionary name -> region was expected.")
    if len(regions) < 2:
        raise ValueError(f"first_passage: at least two regions were expected, got {list(regions)}.")
    gen, found = _resolved(gen, regions)
    times, solutions = np.zeros((len(found), len(found))), {}
    for j, target in enumerate(found):
        name = f"mean first-passage time to {target.name}"
        tau = feynman_kac(stopped(gen, [target]), running=1.0, options=options, name=name)
        solutions[target.name] = tau
        for i, origin in enumerate(found):
            if i != j:
                times[i, j] = _mean(gen, origin, tau)
    return FirstPassage(tuple(regions), times, solutions, {r.name: r.size for r in found})


def _resolved(gen: Any, regions: Mapping[str, Region]) -> tuple[Any, list[Resolved]]:
    """The regions, and the generator on a mesh that follows them."""
    gen = gen if isinstance(gen, Chain) else fitted(gen, regions)
    return gen, resolve(gen.domain, regions, follow=isinstance(gen, Generator))


def _mean(gen: Generator | Chain, origin: Resolved, tau: Solution) -> float:
    """From the point of a region, or from the uniform law in it."""
    if origin.point is not None:
        return float(tau.at(origin.point)[0])
    if isinstance(gen, Generator):
        return _over(gen, origin, tau.function) / origin.size.resolved
    if origin.inside is None:
        raise ValueError(
            f"first_passage: the part {origin.name!r} of the boundary has no inside to start from; give a region."
        )
    load = gen.load(origin.inside)
    if not load.sum() > 0:
        raise ValueError(f"the region {origin.name!r} contains no point of the chain. Enlarge it or refine the mesh.")
    return float(load.dot(gen.vector(tau.raw)) / load.sum())


def committor(
    gen: Generator | Chain,
    A: Region,
    B: Region,
    *,
    start: Any = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
) -> Solution:
    """Probability of reaching B before A, from everywhere (collective).

    Also called splitting probability.  A and B are regions (see :data:`Region`), in which it is zero and one; what
    absorbs counts as not reaching B.  A chain is there when a step ends in them.  The answer's generator is that of the
    process that stops in A and B.  Everything optional as in :func:`~fpsolver.feynman_kac`.

    Raises:
        ValueError: as :func:`resolve`, or the process may stay for ever outside both.
    """
    gen, regions = _two(gen, A, B)
    more: Any = {"start": start, "rtol": rtol, "max_unknowns": max_unknowns, "options": options}
    return _committor(stopped(gen, regions), regions, **more)


def _two(gen: Generator | Chain, A: Region, B: Region) -> tuple[Any, list[Resolved]]:
    """Both regions, called A and B or, if they are boundary parts, by name; the generator follows them."""
    names = [region if isinstance(region, str) else name for name, region in (("A", A), ("B", B))]
    if names[0] == names[1]:
        raise ValueError(f"committor: A and B are the same part {names[0]!r}.")
    return _resolved(gen, dict(zip(names, (A, B), strict=True)))


def _committor(gen: Generator | Chain, regions: list[Resolved], **more: Any) -> Solution:
    q = feynman_kac(gen, exit={regions[1].name: 1.0}, name="committor", **more)
    return _Filled(q, regions) if isinstance(gen, Chain) else q


class _Filled(Solution):
    """The committor of a chain, whose function has in the regions the probabilities after one step."""

    def __init__(self, q: Solution, regions: list[Resolved]):
        self.__dict__ |= q.__dict__
        self._regions = regions

    def at(self, points: Any) -> np.ndarray:
        """Values at points."""
        found = super().at(points)
        x = np.asarray(points, dtype=float).reshape(len(found), -1)
        for value, region in enumerate(self._regions):
            if region.inside is not None:
                found[region.inside(x)] = value
        return found


@dataclass(frozen=True)
class TransitionRate(Answer):
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
    """

    rate: float
    capacity: float
    mass: float
    share_A: float
    k_AB: float
    k_BA: float
    committor: Solution
    sizes: tuple[Size, Size]

    def in_steps(self) -> "TransitionRate":
        """Rates per step of an algorithm (collective)."""
        unit = need_steps(steps_of(self.committor.generator.process), "this transition rate")
        rates = {name: unit * getattr(self, name) for name in ("rate", "capacity", "k_AB", "k_BA")}
        return replace(self, **rates)

    def __repr__(self) -> str:
        numbers = ("k_AB", "k_BA", "share_A", "capacity", "mass")
        return f"transition rate: {self.rate:.6g}; {', '.join(f'{name} {getattr(self, name):.6g}' for name in numbers)}"


def transition_rate(gen: Generator | Chain, A: Region, B: Region, *, options: Options | None = None) -> TransitionRate:
    """Rate of transitions from A to B of the stationary process, reversible or not (collective).

    In the ``weighted`` scheme from the capacity between A and B, with full relative accuracy at any barrier.  Otherwise
    with the invariant density ρ: the part r of it that was in A later than in B solves the forward equation outside
    both, with data ρ on A and 0 on B, and ν is its flux into B (E, Vanden-Eijnden, J. Stat. Phys. 123, 2006).  Of a
    chain r = P*(r + ρ 1_A) outside both, and what the steps from A into B carry counts as well; parts of the boundary
    are no regions for it.  ``options`` are PETSc's without the prefix ``fp_exit_``.

    Raises:
        ValueError: something absorbs, the invariant law is not unique, or as :func:`committor`.
    """
    if gen.absorbing:
        raise ValueError(f"transition_rate: {', '.join(gen.absorbing)} absorbs, so there is no stationary process.")
    gen, regions = _two(gen, A, B)
    if isinstance(gen, Chain) and any(r.inside is None for r in regions):
        raise ValueError("transition_rate: a chain needs regions inside the domain: a marker or (point, radius).")
    inner, name = stopped(gen, regions), regions[1].name
    q = _committor(inner, regions, options=options)
    mass = 1.0
    if isinstance(gen, Chain):
        assert regions[0].inside is not None
        source = gen.load(regions[0].inside, gen.vector(stationary(gen).raw))  # moments of ρ 1_A
        image = source.duplicate()
        inner.P.multTranspose(inner.inverse * source, image)
        later = occupation(inner, image, "reactive law", options)[0] + source
        flux, mass_A = inner.exits[name].dot(inner.inverse * later) / gen.time_per_step, later.sum()
    elif gen.weak.scheme.by_capacities:
        flux = capacity_solver(inner, "committor", options).effective(*inner.absorbing)
        mass = float(basis_integrals(gen).sum())
        mass_A = mass - basis_integrals(gen).dot(to_vector(gen, q.function))
    else:
        rho = stationary(gen).raw
        v, from_A = ufl.TestFunction(gen.V), inner.territory.facets((regions[0].name,))
        source = assemble_vector(gen, inner.weak.entrance_data(rho, v, from_A))
        source.scale(-1.0)
        r = source.duplicate()
        exit_solver(inner, "committor", options).solve(source, r)
        flux, mass_A = exit_flux(inner, name).dot(r), basis_integrals(inner).dot(r)
        mass_A += 0.0 if isinstance(A, str) else _over(gen, regions[0], rho)
    rate, share = float(flux) / mass, float(mass_A) / mass
    sizes = (regions[0].size, regions[1].size)
    return TransitionRate(rate, float(flux), mass, share, rate / share, rate / (1.0 - share), q, sizes)
