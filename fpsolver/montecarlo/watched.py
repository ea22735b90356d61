"""Exits of an algorithm, which is seen after whole steps only, as exits of its diffusion from a larger domain."""

from collections.abc import Sequence

import numpy as np

from ..discretisation.solution import bounds
from ..domains.domain import Domain, part_names
from ..models.process import MomentumSGD, Process
from ._dynamics import Diffusion
from ._walls import Facets, walls_of

OVERSHOOT = 0.5825971579390107
"""−ζ(1/2)/√(2π)."""


def watched_after_steps(
    process: Process, domain: Domain, absorbing: Sequence[str] | str, *, step: float | None = None
) -> Domain:
    """The domain from which the diffusion takes as long as a walk that is watched after whole steps (collective).

    A walk may leave and return within a step.  With Gaussian steps whose standard deviation normal to a wall is s, this
    acts like a wall farther out by −ζ(1/2)/√(2π) s = 0.5826 s (Siegmund 1979; Broadie, Glasserman and Kou 1997), an
    effect of order √η on exit times of SGD; what remains is of order η.  Absorbing walls are moved outwards by that
    length with s² = 2 η nᵀDn taken at their nodes; other walls stay.

    Args:
        process: one whose steps are those of a walk, such as ``fp.SGD``.
        domain: an interval, rectangle or box, a disk, ball or annulus.
        absorbing: parts of its boundary where paths end.
        step: time between two looks; by default one step of the algorithm.

    Returns:
        A new domain with the same parts; where s varies along a wall, the new wall is no longer straight.

    Raises:
        ValueError: another domain, an unknown part, a step that is missing or not positive.
        TypeError: momentum, whose positions have no noise of their own.
    """
    if isinstance(process, MomentumSGD):
        raise TypeError("watched_after_steps: the steps of momentum SGD are no walk; expected fp.SGD or fp.SDE.")
    step = getattr(process, "time_per_step", None) if step is None else step
    if step is None or not 0 < step < np.inf:
        raise ValueError(f"watched_after_steps: step is {step!r}; a positive time was expected.")
    names = part_names(absorbing)
    for name in names:
        domain.facets(name)  # refuses unknown names
    walls = walls_of(domain, names)
    if isinstance(walls, Facets):
        raise ValueError("watched_after_steps: expected an interval, rectangle, box, disk, ball or annulus.")
    lower, upper = bounds(domain.mesh)
    coefficients = Diffusion(process, domain.dim)

    def outwards(x: np.ndarray) -> np.ndarray:
        distance, move = np.abs(walls.distance(x)), np.zeros_like(x)
        for surface in range(walls.surfaces):
            here = np.flatnonzero(distance[surface] < 1e-6 * (upper - lower).max())
            here = here[walls.label(surface, x[:, here]) >= 0] if here.size else here
            if here.size:
                n, S = walls.normal(surface, x[:, here]), coefficients(x[:, here])[1]
                move[:, here] += OVERSHOOT * np.sqrt(step * ((n[:, None] * S).sum(axis=0) ** 2).sum(axis=0)) * n
        return x + move

    return domain.mapped(outwards)
