"""Named regions inside a domain: committors, transition rates, mean first-passage times between them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import mesh as dmesh

from .._petsc import Options
from ..chain import Chain
from ..chain.refinement import MAX_UNKNOWNS, Numbers, to_accuracy
from ..discretisation.generator import Generator
from ..discretisation.solution import Solution
from ._stopped import Region, Resolved, Size, fitted, resolve, stopped, total
from .exit import feynman_kac


def over(gen: Generator, region: Resolved, integrand: Any) -> float:
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
class FirstPassage(Numbers):
    """Mean first-passage times between regions.

    Attributes:
        names: of the regions.
        times: times[i, j] is the mean time to reach region j from region i, shape (n, n), zero on the diagonal.
        solutions: for each target the mean time from everywhere; ``solutions["B"].at(points)``.
        sizes: for each region its :class:`Size` on the mesh.
        error: error bars of the times, shape (n, n) (collective when first asked for).
    """

    names: tuple[str, ...]
    times: npt.NDArray[np.float64]
    solutions: dict[str, Solution]
    sizes: dict[str, Size]

    def numbers(self) -> npt.NDArray[np.float64]:
        """The times but those on the diagonal."""
        return self.times[~np.eye(len(self.times), dtype=bool)]

    @property
    def error(self) -> npt.NDArray[np.float64]:
        """Error bars of the times."""
        found = np.zeros_like(self.times)
        found[~np.eye(len(found), dtype=bool)] = self.bars
        return found

    def in_steps(self) -> "FirstPassage":
        """Mean numbers of steps of an algorithm (collective)."""
        solutions = {name: tau.in_steps() for name, tau in self.solutions.items()}
        process = next(iter(self.solutions.values())).generator.process
        return self._in_unit(solutions=solutions, times=self.times / process.time_per_step)

    def __repr__(self) -> str:
        width = max(10, *(len(name) for name in self.names))
        rows = [" ".join([" " * width, *(f"{name:>{width}}" for name in self.names)])]
        for i, name in enumerate(self.names):
            rows.append(" ".join([f"{name:>{width}}", *(f"{t:{width}.6g}" for t in self.times[i].tolist())]))
        return "mean time from (row) to (column)\n" + "\n".join(rows)


def first_passage(
    gen: Generator | Chain,
    regions: Mapping[str, Region],
    *,
    options: Options | None = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
) -> FirstPassage:
    """Mean first-passage times between named regions: one factorisation and one solve for each target (collective).

    Of at least two regions (see :data:`Region`), one given as (point, radius) is left from its point; one given by a
    marker, from the uniform law in its cells; a boundary part, from the uniform law on it, which chains cannot.  A
    chain has arrived when a step ends in the target.  ``.error`` are error bars; with ``rtol`` all cells are refined
    until they meet it.  ``options`` are PETSc's without the prefix ``fp_exit_``.

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

    def ask(other: Generator | Chain) -> FirstPassage:
        return _first_passage(other, regions, ask, options)

    return to_accuracy("first_passage", gen, ask, "fp_exit_", rtol=rtol, max_unknowns=max_unknowns)


def _first_passage(
    given: Generator | Chain, regions: Mapping[str, Region], ask: Any, options: Options | None
) -> FirstPassage:
    gen, found = _resolved(given, regions)
    times, solutions = np.zeros((len(found), len(found))), {}
    for j, target in enumerate(found):
        name = f"mean first-passage time to {target.name}"
        tau = feynman_kac(stopped(gen, [target]), running=1.0, options=options, name=name)
        solutions[target.name] = tau
        for i, origin in enumerate(found):
            if i != j:
                times[i, j] = _mean(gen, origin, tau)
    return FirstPassage(tuple(regions), times, solutions, {r.name: r.size for r in found}, generator=given, ask=ask)


def _resolved(gen: Any, regions: Mapping[str, Region]) -> tuple[Any, list[Resolved]]:
    """The regions, and the generator on a mesh that follows them."""
    gen = gen if isinstance(gen, Chain) else fitted(gen, regions)
    return gen, resolve(gen.domain, regions, follow=isinstance(gen, Generator))


def _mean(gen: Generator | Chain, origin: Resolved, tau: Solution) -> float:
    """From the point of a region, or from the uniform law in it."""
    if origin.point is not None:
        return float(tau.at(origin.point)[0])
    if isinstance(gen, Generator):
        return over(gen, origin, tau.function) / origin.size.resolved
    if origin.inside is None:
        raise ValueError(
            f"first_passage: the part {origin.name!r} of the boundary has no inside to start from; give a region."
        )
    load = gen.load(origin.inside)
    if not load.sum() > 0:
        raise ValueError(f"the region {origin.name!r} contains no point of the chain. Enlarge it or refine the mesh.")
    return float(load.dot(gen.vector(tau.raw)) / load.sum())


def committor(
    gen: Generator | Chain, A: Region, B: Region, *, start: Any = None, rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS, options: Options | None = None,
) -> Solution:  # fmt: skip
    """Probability of reaching B before A, from everywhere (collective).

    Also called splitting probability.  A and B are regions (see :data:`Region`), in which it is zero and one; what
    absorbs counts as not reaching B.  A chain is there when a step ends in them.  The answer's generator is that of the
    process that stops in A and B.  Everything optional as in :func:`~fpsolver.feynman_kac`.

    Raises:
        ValueError: as :func:`resolve`, or the process may stay for ever outside both.
    """
    gen, regions = two_regions(gen, A, B)
    more: Any = {"start": start, "rtol": rtol, "max_unknowns": max_unknowns, "options": options}
    return committor_of(stopped(gen, regions), regions, **more)


def two_regions(gen: Generator | Chain, A: Region, B: Region) -> tuple[Any, list[Resolved]]:
    """Both regions, called A and B or, if they are boundary parts, by name; the generator follows them."""
    names = [region if isinstance(region, str) else name for name, region in (("A", A), ("B", B))]
    if names[0] == names[1]:
        raise ValueError(f"committor: A and B are the same part {names[0]!r}.")
    return _resolved(gen, dict(zip(names, (A, B), strict=True)))


def committor_of(gen: Generator | Chain, regions: list[Resolved], **optional: Any) -> Solution:
    """Of a process that already stops in the two regions (collective)."""
    q = feynman_kac(gen, exit={regions[1].name: 1.0}, name="committor", **optional)
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
