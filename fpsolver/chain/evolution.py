"""Step by step: densities forward, expectations backward, the law of the exit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from petsc4py import PETSc

import numpy as np
from dolfinx import fem

from .._answer import Answer
from .._petsc import Options
from .._verbs import answers
from ..discretisation.solution import Solution, as_points
from ..evolution import evolve as flows
from ..evolution.evolution import Evolution, check_times
from ..exits import exit_law as exits_of
from ._killed import check_sound
from ._sources import field, is_density, load_density
from .chain import Chain
from .exits import need_exit, occupation

Array = np.ndarray[Any, Any]


def _steps_until(chain: Chain, times: Any) -> Array:
    """Whole numbers of steps nearest to the times."""
    return np.rint(check_times(times) / chain.time_per_step).astype(int)


class _Walk(Evolution):
    """An evolution of a chain, whose densities are reported as they are."""

    def keep(self, time: float, vector: PETSc.Vec, integrals: Array, values: Array) -> None:
        """Keep the solution at one more time (collective)."""
        chain: Any = self.generator
        self._rows.append((time, float(vector.dot(chain.integrals)), float(vector.min()[1])))
        self._integrals.append(integrals)
        self._values.append(values)
        name = f"{self.name} at t = {time:g}"
        self._solutions.append(Solution(chain.function(vector, self.name), chain.stats(), name, generator=chain))


@answers(flows.evolve, Chain)
def evolve(
    chain: Chain,
    initial: Any,
    times: Any,
    *,
    schedule: Mapping[str, Any] | None = None,
    time_rtol: float = 0.0,
    options: Options | None = None,
) -> Evolution:
    """The law after the steps until each time, M p' = Pᵀ p (collective).

    Times are rounded to whole steps, and ``evolution.times`` tells to which.  Laws of chains may be singular: the
    densities are projections, masses and expectations converge.

    Args:
        chain: the algorithm.
        initial: a law as of a generator.
        times: increasing.
        schedule: numbers of the process that change at some times: name -> pairs (begin, number).
        time_rtol: any is met, as steps are exact.
        options: nothing is solved.
    """
    moments = load_density(chain, initial, "initial density")
    evolution = _Walk(chain, "density", tuple(chain.exits))  # type: ignore[arg-type]
    left = np.zeros(1 + len(chain.exits))
    now = moments
    for t, links in _walk(chain, times, schedule):
        for link in links:
            density, after = now.duplicate(), now.duplicate()
            link.assembled.inverse.mult(now, density)
            flux = np.array([e.dot(density) for e in link.exits.values()])
            left += np.concatenate(([flux.sum()], flux))
            link.P.multTranspose(density, after)
            now.destroy()
            density.destroy()
            now = after
        density = now.duplicate()
        chain.assembled.inverse.mult(now, density)
        flux = np.array([e.dot(density) for e in chain.exits.values()]) / chain.time_per_step
        evolution.keep(t, density, left.copy(), np.concatenate(([flux.sum()], flux)))
    evolution.stats = chain.stats()
    return evolution


@answers(flows.backward, Chain)
def backward(
    chain: Chain,
    payoff: Any,
    times: Any,
    *,
    schedule: Mapping[str, Any] | None = None,
    time_rtol: float = 0.0,
    options: Options | None = None,
) -> Evolution:
    """u(t, x) = E[g(X_t); not absorbed until t | X₀ = x] after the steps until each time, M u' = P u (collective)."""
    load = chain.load(field(chain, payoff, "payoff"))
    first = load.duplicate()
    chain.assembled.inverse.mult(load, first)
    evolution = _Walk(chain, "expectation")  # type: ignore[arg-type]
    if schedule is not None:
        raise ValueError("backward: a chain takes schedules forward, with evolve; backward ones run piece by piece.")
    now, work = first.copy(), first.duplicate()
    for t, links in _walk(chain, times, None):
        for link in links:
            link.P.mult(now, work)
            link.assembled.inverse.mult(work, now)
        evolution.keep(t, now, np.zeros(0), np.zeros(0))
    evolution.stats = chain.stats()
    return evolution


def _walk(chain: Chain, times: Any, schedule: Mapping[str, Any] | None) -> Any:
    """For each time the steps that lead there from the time before: (time, one chain per step)."""
    if schedule is None:
        done = 0
        for count in _steps_until(chain, times):
            yield float(count * chain.time_per_step), [chain] * (count - done)
            done = int(count)
        return
    pieces, begin, cache = _pieces(chain, schedule), 0.0, dict[Any, Chain]()
    for time in check_times(times):
        links = []
        while begin < time - 1e-9:
            numbers = next(values for start, values in reversed(pieces) if start <= begin + 1e-9)
            key = tuple(sorted(numbers.items()))
            if key not in cache:
                cache[key] = chain.replace(**numbers)
            links.append(cache[key])
            begin += cache[key].time_per_step
        yield begin, links


def _pieces(chain: Chain, schedule: Mapping[str, Any]) -> list[tuple[float, dict[str, float]]]:
    """Constant numbers from some times on.

    Raises:
        ValueError: a function of time, which a chain cannot take.
    """
    if not isinstance(schedule, Mapping) or not schedule:
        raise ValueError(f"schedule is {schedule!r}; a dictionary name -> pairs (begin, number) was expected.")
    columns = {}
    for name, value in schedule.items():
        column = value if isinstance(value, list | tuple) else [(0.0, value)]
        if any(callable(v) for _, v in column):
            raise ValueError(
                f"schedule of {name}: a chain takes constant pieces, pairs (begin, number), one transition matrix "
                "each; it got a function of time. Give its values on pieces."
            )
        columns[name] = [(float(b), float(v)) for b, v in column]
        if columns[name][0][0] != 0 or any(
            b[0] >= a[0] for b, a in zip(columns[name], columns[name][1:], strict=False)
        ):
            raise ValueError(f"schedule of {name}: increasing times, the first 0, were expected.")
    begins = sorted({b for column in columns.values() for b, _ in column})
    return [(b, {n: [v for s, v in c if s <= b][-1] for n, c in columns.items()}) for b in begins]


@answers(exits_of.survival, Chain)
def survival(chain: Chain, start: Any, times: Any, *, time_rtol: float = 0.0, options: Options | None = None) -> Array:
    """P(τ > t) at the times rounded to whole steps, shape (times,) or (points, times) (collective)."""
    need_exit(chain, "survival")
    if is_density(start):
        return evolve(chain, start, times).mass
    points = as_points(start, chain.domain.dim, "start")
    now, work, values = chain.one.copy(), chain.one.duplicate(), []
    for _, links in _walk(chain, times, None):
        for link in links:
            link.P.mult(now, work)
            link.assembled.inverse.mult(work, now)
        values.append(chain.values(now, points))
    found = np.array(values).T
    return found[0] if len(points) == 1 else found


@dataclass(frozen=True)
class ExitLaw(Answer):
    """Where a chain leaves.

    Attributes:
        probability: dictionary part -> probability.
        mean_time: E τ from the same start.
        occupation: η times the expected visits, a projected density.
    """

    probability: dict[str, float]
    mean_time: float
    occupation: fem.Function
    _chain: Chain
    _visits: PETSc.Vec

    def __repr__(self) -> str:
        shares = ", ".join(f"{part}={share:.6g}" for part, share in self.probability.items())
        return f"<exit distribution: {shares}; mean time {self.mean_time:.6g}>"

    def points(self, part: str) -> tuple[Array, Array]:
        """Where paths cross a part, on every rank: points (n, d) and their probabilities (n,) (collective)."""
        chain = self._chain
        if part not in chain.exits:
            raise ValueError(f"exit law: {part!r} does not absorb; absorbing are {', '.join(chain.exits)}.")
        return chain.crossings(list(chain.exits).index(part), self._visits)


@answers(exits_of.exit_distribution, Chain)
def exit_distribution(chain: Chain, start: Any, *, options: Options | None = None) -> ExitLaw:
    """Through which part and where the chain leaves, from the expected visits (collective)."""
    need_exit(chain, "exit_distribution")
    source = load_density(chain, start)
    moments, figures = occupation(chain, source, "occupation density", options)
    check_sound(chain, "exit_distribution", figures)
    visits = moments.duplicate()
    chain.assembled.inverse.mult(moments, visits)
    probability = {part: float(e.dot(visits)) for part, e in chain.exits.items()}
    mean = float(moments.sum()) * chain.time_per_step
    density = visits.copy()
    density.scale(chain.time_per_step)
    return ExitLaw(probability, mean, chain.function(density, "occupation"), chain, visits)
