"""A chain's law or expectation, step by step."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .._arguments import expect
from ..chain import Chain
from ..chain.sources import field
from ._krylov import Snapshot, dots
from .evolution import Evolution
from .initial import load_density
from .schedule import pieces


def walk(
    chain: Chain, name: str, data: Any, times: np.ndarray, schedule: Mapping[str, Any] | None, checkpoint: Any
) -> Evolution:
    """The evolution of a chain from an initial law or a payoff (collective)."""
    forward = name == "density"
    expect("checkpoint", checkpoint, "None, as a chain keeps none (evolve it in pieces),", checkpoint is None)
    if schedule is not None and not forward:
        raise ValueError("backward: a chain takes schedules forward, with evolve; backward ones run piece by piece.")
    parts = chain.absorbing if forward else ()

    def march(chain: Chain) -> Iterator[Snapshot]:
        start = load_density(chain, data, "initial density") if forward else chain.load(field(chain, data, "payoff"))
        now, image, left = chain.inverse * start, start.duplicate(), np.zeros(1 + len(parts))
        for t, links in _steps(chain, times, schedule):
            for link in links:
                flux = dots(now, list(link.exits.values()))
                left += [flux.sum(), *flux] if forward else 0.0
                (link.P.multTranspose if forward else link.P.mult)(now, image)
                link.inverse.mult(image, now)
            yield Snapshot(t, now.copy(), left.copy() if forward else np.zeros(0))

    again = None if schedule is not None else (lambda other: [snapshot.vector for snapshot in march(other)])
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
