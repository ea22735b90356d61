"""The law of the exit: through which part, where on it, and when."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from dolfinx import fem

from .._answer import need_steps, steps_of, with_bar
from .._arguments import need_still
from .._log import logger
from .._petsc import Options
from ..chain import Chain
from ..chain.equations import Operator, check_sound, solve
from ..chain.refinement import MAX_UNKNOWNS, Numbers, to_accuracy
from ..discretisation.assembly import to_density, to_function
from ..discretisation.generator import Generator
from ..discretisation.metastable import capacity_solver
from ..discretisation.solver import basis_integrals, exit_flux, exit_solver
from ..evolution.initial import load_density
from ._guards import check_reach, need_exit


class ExitDensity(NamedTuple):
    """Exit density along a part, at quadrature points of its facets.

    Attributes:
        points: shape (n, d).
        density: per length or area, shape (n,).
        weights: shape (n,); ``density @ weights`` is the probability of the part, to rounding.
    """

    points: np.ndarray
    density: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class ExitDistribution(Numbers):
    """Where and through which part a process leaves.

    Attributes:
        probability: dictionary part -> probability; sums to the probability of ever leaving.
        mean_time: E τ from the same start, the integral of the occupation density.
        occupation: occupation density ∫₀^∞ p(t) dt (the Green measure of the start), a ``Function``.
        error: dictionary part -> error bar of its probability (collective when first asked for).
    """

    probability: dict[str, float]
    mean_time: float
    occupation: fem.Function
    _forward: Any

    def numbers(self) -> np.ndarray:
        """Probabilities, and the mean time."""
        return np.array([*self.probability.values(), self.mean_time])

    @property
    def error(self) -> dict[str, float]:
        """Error bars of the probabilities."""
        return {part: float(error) for part, error in zip(self.probability, self.bars[:-1], strict=True)}

    def accuracy(self) -> tuple[float, float]:
        """Of the probabilities relative to one, of the time to itself."""
        *shares, time = self.bars
        return 1.0, float(max(*shares, time / abs(self.mean_time)))

    def __repr__(self) -> str:
        bars: Any = self.error if "bars" in self.__dict__ else {}
        shares = ", ".join(f"{part} {with_bar(p, bars.get(part))}" for part, p in self.probability.items())
        unit = steps_of(self.generator.process)
        steps = "" if unit is None else f", {self.mean_time / unit:.6g} steps"
        return f"exit through {shares}; mean time {self.mean_time:.6g}{steps}"

    def in_steps(self) -> "ExitDistribution":
        """The same with the mean time in steps of an algorithm, and the expected number of visits (collective)."""
        unit = need_steps(steps_of(self.generator.process), "this exit distribution")
        visits = fem.Function(self.occupation.function_space, name="visits")
        visits.x.array[:] = self.occupation.x.array / unit
        return self._in_unit(mean_time=self.mean_time / unit, occupation=visits)

    def density(self, part: str) -> ExitDensity:
        """Exit density of a diffusion along an absorbing part, on every rank (collective); chains may have none."""
        gen = self._need(part)
        if isinstance(gen, Chain):
            raise ValueError("exit density: where a chain leaves may have no density; .points(part) has its law.")
        return ExitDensity(*gen.boundary.flux(self._forward, gen.domain.facets(part), gen.weak))

    def points(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Where paths cross an absorbing part, on every rank: points (n, d), probabilities (n,) (collective)."""
        gen = self._need(part)
        if isinstance(gen, Chain):
            return gen.crossings(gen.absorbing.index(part), self._forward)
        found = self.density(part)
        return found.points, found.density * found.weights

    def _need(self, part: str) -> Generator | Chain:
        gen: Generator | Chain = self.generator
        if part not in gen.absorbing:
            raise ValueError(f"exit density: {part!r} does not absorb; absorbing are {', '.join(gen.absorbing)}.")
        return gen


def exit_distribution(
    gen: Generator | Chain, start: Any, *, rtol: float | None = None, max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
) -> ExitDistribution:  # fmt: skip
    """Exit probabilities of the absorbing parts and where on them the process leaves (collective).

    One forward solve −G g = M p₀; the flux of g through a part is the consistent one of the scheme, so that the
    probabilities sum to one to solver tolerance.  Of a chain from its expected visits.  ``start`` is a point, or an
    initial density as in :func:`~fpsolver.evolve`.  ``.error`` are error bars; with ``rtol`` all cells are refined
    until probabilities, and the mean time relative to itself, meet it.  ``options`` are PETSc's without ``fp_exit_``.

    Raises:
        ValueError: nothing absorbs, the start is outside or has not mass one, exit is not certain, or a probability is
            below -0.1, so that the mesh resolves nothing.
        NotConverged: the solve failed, or rounding has made the answer meaningless.
    """
    need_still(gen, "exit_distribution")
    need_exit(gen, "exit_distribution")

    def ask(other: Generator | Chain) -> ExitDistribution:
        return replace(_distribution(other, start, options), generator=other, ask=ask)

    return to_accuracy("exit_distribution", gen, ask, "fp_exit_", rtol=rtol, max_unknowns=max_unknowns)


def _distribution(gen: Generator | Chain, start: Any, options: Options | None) -> ExitDistribution:
    if isinstance(gen, Chain):
        start = load_density(gen, start)
        moments, figures = solve(Operator(gen, transpose=True), start, "occupation density", options)
        check_sound(Operator(gen), "exit_distribution", figures)
        visits, unit = gen.inverse * moments, gen.time_per_step
        found = _resolved({part: float(e.dot(visits)) for part, e in gen.exits.items()})
        occupied = gen.function(unit * visits, "occupation")
        return ExitDistribution(found, float(moments.sum()) * unit, occupied, visits)
    source = load_density(gen, start)
    check_reach(gen, "exit_distribution")
    what = "occupation density"
    if gen.weak.scheme.by_capacities:
        capacity = capacity_solver(gen, what, options)
        g, shares = capacity.solve(source), capacity.absorbed(source)
    else:
        g = gen.G.createVecRight()
        exit_solver(gen, what, options).solve(source, g)
        g.scale(-1.0)
        shares = np.array([exit_flux(gen, part).dot(g) for part in gen.absorbing])
    probability = {part: float(x) for part, x in zip(gen.absorbing, shares, strict=True)}
    if not abs(sum(probability.values()) - source.sum()) < 1e-6:
        raise ValueError(
            f"exit_distribution: the probabilities {probability} do not add up to one: the process stays for ever in a "
            "part of the domain, or leaves it too slowly for double precision. Add noise there."
        )
    mean = float(basis_integrals(gen).dot(g))
    occupied = to_density(gen, g, "occupation")
    return ExitDistribution(_resolved(probability), mean, occupied, to_function(gen, g))


def _resolved(probability: dict[str, float]) -> dict[str, float]:
    """The same; refused if one is below -0.1, and warned about below -0.01."""
    if (lowest := min(probability.values())) < -1e-2:
        problem = f"exit_distribution: the probabilities are {probability}: the mesh does not resolve the way out. "
        problem += "Refine it, or take scheme='weighted' if the invariant density is known."
        if lowest < -0.1:
            raise ValueError(problem)
        logger.warning("%s", problem)
    return probability
