"""What an evolution gives: a solution at each of its times, and the mass that has left until then."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .._answer import Answer, figures, need_steps, steps_of
from .._arguments import expect
from ..chain import Chain
from ..chain.sources import field as as_field
from ..discretisation.assembly import to_density, to_function
from ..discretisation.positivity import Limiter, limiter
from ..discretisation.solution import Level
from ..discretisation.solver import basis_integrals
from ._krylov import Snapshot, dots
from .initial import load_density
from .law import Law, Whole
from .schedule import pieces


class _Row(NamedTuple):
    """What is kept at one time."""

    time: float
    mass: float
    minimum: float
    integrals: np.ndarray
    solution: Whole


@dataclass(frozen=True, eq=False, repr=False)
class Evolution(Answer, Sequence[Whole]):
    """A solution at several times; ``evolution[i]`` is the :class:`~fpsolver.Solution` at ``times[i]``.

    Attributes:
        name: what evolves, "density" or "expectation".
        generator: with which it was made.
        parts: absorbing parts whose outflux is kept.
        times, mass: shape (n,).
        minimum: smallest value of the discrete solution at each time, at and between nodes, shape (n,): for a density
            a measure of what the mesh does not resolve.
        outflux: mass that has left through absorbing parts since time 0, shape (n,); an integral over time of the
            flux itself, so ``mass + outflux`` tests the balance.  Zero for :func:`~fpsolver.backward`.
        outflux_by_part: the same for each absorbing part.
        limiter: what makes the reported densities non-negative; None for signed measures and expectations.
        scheduled: whether numbers changed on the way.
        stats: unknowns, scheme, degree, solves, factorisations, steps, basis, time_error (estimated, relative, in the
            L² norm).
        again: the same evolution of another generator or chain, of which error bars are made, kept once it is known;
            None: there are none.
        history: the meshes of an evolution to a prescribed accuracy, the coarsest first.
    """

    name: str
    generator: Any
    parts: tuple[str, ...] = ()
    limiter: Limiter | None = None
    scheduled: bool = False
    stats: dict[str, Any] = field(default_factory=dict)
    again: Callable[[Any], Sequence[Any]] | None = None
    history: tuple[Level, ...] = ()
    _rows: list[_Row] = field(default_factory=list)

    def append(self, snapshot: Snapshot) -> None:
        """Keep the solution at one more time (collective)."""
        gen, vector = self.generator, snapshot.vector
        if isinstance(gen, Chain):
            function, mass, least = gen.function(vector), vector.dot(gen.integrals), vector.min()[1]
        else:
            function = (to_density if self.name == "density" else to_function)(gen, vector)
            mass, least = vector.dot(basis_integrals(gen)), limiter(gen).minimum(function)
        name = f"{self.name} at t = {snapshot.time:g}"
        again = None if (ask := self.again) is None else lambda other, i=len(self): ask(other)[i]
        kind = Law if self.name == "density" else Whole
        solution = kind(gen, function, self.stats, name, again, self.limiter)
        self._rows.append(_Row(snapshot.time, float(mass), float(least), snapshot.integrals, solution))

    # as of each of its functions
    sure, roundoff, shape_error = Whole.sure, Whole.roundoff, Whole.shape_error

    def accuracy(self) -> tuple[float, float]:
        """The worst ratio over the times, as :func:`~fpsolver.chain.refinement.to_accuracy` asks (collective)."""
        ratios = [error / max(size, 1e-300) for size, error in (row.solution.accuracy() for row in self._rows)]
        return 1.0, max(ratios)

    def by_cells(self) -> np.ndarray:
        """Shares of this rank's cells in the errors at all times (collective)."""
        every = [np.asarray(row.solution.by_cells()) / row.solution.accuracy()[0] for row in self._rows]
        return np.asarray(np.sum(every, axis=0))

    def keep(self, history: tuple[Level, ...]) -> None:
        """Remember the meshes that led here."""
        object.__setattr__(self, "history", history)

    times = property(lambda self: self._column("time"), doc="Times, shape (n,).")
    mass = property(lambda self: self._column("mass"), doc="Integral over the domain, shape (n,).")
    minimum = property(lambda self: self._column("minimum"), doc="Smallest value, shape (n,).")

    @property
    def outflux(self) -> np.ndarray:
        """Mass that has left, shape (n,)."""
        return np.array([row.integrals[0] if len(row.integrals) else 0.0 for row in self._rows])

    def _column(self, name: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in self._rows])

    @property
    def outflux_by_part(self) -> dict[str, np.ndarray]:
        """The same of each part, shape (n,) each."""
        columns = self._column("integrals").T
        return {part: columns[i] for i, part in enumerate(self.parts, 1)}

    def in_steps(self) -> "Evolution":
        """The same with times in steps of an algorithm.

        Raises:
            ValueError: no algorithm, or one whose numbers change: :func:`~fpsolver.count_steps` counts then.
        """
        unit = need_steps(steps_of(self.generator.process), f"the time of this {self.name}")
        if self.scheduled:
            raise ValueError("in_steps: steps take different times under a schedule; fp.count_steps counts them.")
        rows = [row._replace(time=row.time / unit) for row in self._rows]
        return replace(self, _rows=rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: Any) -> Any:
        return self._rows[i].solution if isinstance(i, int | np.integer) else [row.solution for row in self._rows[i]]

    def plot(self, path: Any = None, **options: Any) -> Any:
        """Draw a filmstrip, and write it to ``path`` if given: :func:`fpsolver.plot.series` (collective)."""
        from ..plot import series

        return series(self, path=path, **options)

    def __repr__(self) -> str:
        if not len(self):
            return f"{self.name} at no time"
        when = f"t = {self.times[0]:g}" + (f" to {self.times[-1]:g} ({len(self)} times)" if len(self) > 1 else "")
        mass = f": mass {self.mass[0]:.6g}" + (f" to {self.mass[-1]:.6g}" if len(self) > 1 else "")
        return f"{self.name} at {when}{mass if self.name == 'density' else ''}\n  {figures(self.stats)}"


def walk(
    chain: Chain, name: str, data: Any, times: np.ndarray, schedule: Mapping[str, Any] | None, checkpoint: Any,
    rtol: Any,
) -> Evolution:  # fmt: skip
    """The evolution of a chain from an initial law or a payoff (collective)."""
    forward = name == "density"
    wanted = "None: of a chain's laws masses, of its expectations values at points have error bars; it"
    expect("rtol", rtol, wanted, rtol is None)
    expect("checkpoint", checkpoint, "None, as a chain keeps none (evolve it in pieces),", checkpoint is None)
    if schedule is not None and not forward:
        raise ValueError("backward: a chain takes schedules forward, with evolve; backward ones run piece by piece.")
    parts = chain.absorbing if forward else ()

    def march(chain: Chain) -> Iterator[Snapshot]:
        start = load_density(chain, data, "initial density") if forward else chain.load(as_field(chain, data, "payoff"))
        now, image, left = chain.inverse * start, start.duplicate(), np.zeros(1 + len(parts))
        for t, links in _steps(chain, times, schedule):
            for link in links:
                flux = dots(now, list(link.exits.values()))
                left += [flux.sum(), *flux] if forward else 0.0
                (link.P.multTranspose if forward else link.P.mult)(now, image)
                link.inverse.mult(image, now)
            yield Snapshot(t, now.copy(), left.copy() if forward else np.zeros(0))

    again = None if schedule is not None else cache(lambda other: [snapshot.vector for snapshot in march(other)])
    evolution = Evolution(name, chain, parts, scheduled=schedule is not None, again=again)
    evolution.stats.update(chain.stats())
    for snapshot in march(chain):
        evolution.append(snapshot)
    return evolution


def _steps(chain: Chain, times: np.ndarray, schedule: Mapping[str, Any] | None) -> Iterator[tuple[float, list[Chain]]]:
    """For each time the steps that lead there from the time before: (time, one chain per step)."""
    if schedule is None:
        counts = np.rint(times / chain.time_per_step).astype(int)
        for count, more in zip(counts, np.diff(counts, prepend=0), strict=True):
            yield float(count * chain.time_per_step), [chain] * more
        return
    stretches, t, known = pieces(chain, schedule), 0.0, dict[Any, Chain]()
    for time in times:
        links = []
        while t < time - 1e-9:
            numbers = next(piece for piece in reversed(stretches) if piece.begin <= t + 1e-9).at(t)
            key = tuple(numbers.items())
            if key not in known:
                known[key] = chain.replace(**numbers)
            links.append(known[key])
            t += known[key].time_per_step
        yield t, links
