"""Between regions: committors, first passages and transition rates of a chain, seen at the ends of steps."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._petsc import Options
from .._verbs import answers
from ..discretisation.solution import Solution
from ..exits import regions as verbs
from ..exits.adapt import MAX_UNKNOWNS
from ..exits.regions import FirstPassage, Size, TransitionRate
from ._regions import indicator, stopped
from .chain import Chain
from .exits import exit_probability, mean_exit_time, occupation
from .laws import stationary

Array = np.ndarray[Any, Any]


class _Filled(Solution):
    """An answer that is known inside some regions."""

    def __init__(self, inner: Solution, known: list[tuple[Any, float]]):
        about: Any = {"start": inner._start, "value": inner.value, "error": inner._error}
        super().__init__(inner.raw, inner.stats, inner.name, inner.estimate, generator=inner.generator, **about)
        self._known = known

    def at(self, points: Any) -> Array:
        """Values at points."""
        found = super().at(points)
        x = np.asarray(points, dtype=float).reshape(len(found), -1)
        for inside, value in self._known:
            found[inside(x)] = value
        return found


def _two(A: Any, B: Any) -> dict[str, Any]:
    names = [region if isinstance(region, str) else name for name, region in (("A", A), ("B", B))]
    if names[0] == names[1]:
        raise ValueError(f"committor: A and B are the same part {names[0]!r}.")
    return dict(zip(names, (A, B), strict=True))


@answers(verbs.committor, Chain)
def committor(
    chain: Chain,
    A: Any,
    B: Any,
    *,
    start: Any = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
) -> Solution:
    """Probability that a step ends in B before one ends in A (collective); regions as of a generator."""
    regions = _two(A, B)
    more: Any = {"start": start, "rtol": rtol, "max_unknowns": max_unknowns, "options": options}
    q = exit_probability(stopped(chain, regions), [list(regions)[1]], name="committor", **more)
    inner = [(name, r, v) for (name, r), v in zip(regions.items(), (0.0, 1.0), strict=True) if not isinstance(r, str)]
    return _Filled(q, [(indicator(chain, r, name), v) for name, r, v in inner])


@answers(verbs.first_passage, Chain)
def first_passage(chain: Chain, regions: Mapping[str, Any], *, options: Options | None = None) -> FirstPassage:
    """Mean first-passage times between regions, until a step ends in the target (collective).

    Regions given as (point, radius) are left from their point, others from the uniform law in them.
    """
    if chain.absorbing:
        raise ValueError(
            f"first_passage: {', '.join(chain.absorbing)} absorbs, so a region may never be reached; build the chain "
            "without absorbing parts, or ask for exit_probability."
        )
    if not isinstance(regions, Mapping) or len(regions) < 2:
        raise ValueError("first_passage: a dictionary name -> region with at least two regions was expected.")
    names = list(regions)
    times, solutions, sizes = np.zeros((len(names), len(names))), {}, {}
    for j, target in enumerate(names):
        name = f"mean first-passage time to {target}"
        tau = mean_exit_time(stopped(chain, {target: regions[target]}), options=options, name=name)
        solutions[target] = tau
        for i, origin in enumerate(names):
            if i != j:
                times[i, j] = _from(chain, regions[origin], origin, tau)
        sizes[target] = _size(chain, regions[target], target)
    return FirstPassage(tuple(names), times, solutions, sizes)


def _size(chain: Chain, region: Any, name: str) -> Size:
    if isinstance(region, str):
        return Size(0.0, 0.0)
    inside = indicator(chain, region, name)
    volume = float(chain.load(lambda x: inside(x).astype(float)).sum())
    return Size(volume, volume)


def _from(chain: Chain, region: Any, name: str, tau: Solution) -> float:
    if isinstance(region, tuple):
        return float(tau.at(region[0])[0])
    if isinstance(region, str):
        raise ValueError(
            f"first_passage: the part {name!r} of the boundary has no inside to start from; give a region."
        )
    inside = indicator(chain, region, name)
    load = chain.load(lambda x: inside(x).astype(float))
    if not load.sum() > 0:
        raise ValueError(f"the region {name!r} contains no point of the mesh. Enlarge it or refine the mesh.")
    return float(load.dot(chain.vector(tau.raw)) / load.sum())


@answers(verbs.transition_rate, Chain)
def transition_rate(chain: Chain, A: Any, B: Any, *, options: Options | None = None) -> TransitionRate:
    """Rate of transitions from A to B of the stationary chain, per unit of t (collective).

    The part r of the invariant law that was in A later than in B solves r = P*(r + p 1_A) outside both; the rate is its
    flux into B, and what the steps from A into B carry.
    """
    if chain.absorbing:
        raise ValueError(f"transition_rate: {', '.join(chain.absorbing)} absorbs, so there is no stationary process.")
    regions = _two(A, B)
    if any(isinstance(r, str) for r in regions.values()):
        raise ValueError("transition_rate: a chain needs regions inside the domain: a marker or (point, radius).")
    between = stopped(chain, regions)
    names = list(regions)
    law = stationary(chain, options=options)
    inside = indicator(chain, A, names[0])
    density = chain.vector(law.raw)
    source = chain.masked(lambda x: inside(x).astype(float), density)  # moments of p 1_A
    work, image = source.duplicate(), source.duplicate()
    between.assembled.inverse.mult(source, work)
    between.P.multTranspose(work, image)
    later, _ = occupation(between, image, "reactive law", options)
    both = later.copy()
    both.axpy(1.0, source)
    between.assembled.inverse.mult(both, work)
    rate = float(between.exits[names[1]].dot(work)) / chain.time_per_step
    share = float(both.sum())
    q = committor(chain, A, B, options=options)
    sizes = (_size(chain, A, names[0]), _size(chain, B, names[1]))
    return TransitionRate(rate, rate, 1.0, share, rate / share, rate / (1.0 - share), q, sizes)
