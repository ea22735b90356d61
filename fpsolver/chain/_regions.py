"""Regions of a chain as functions of points: a marker, a ball, or a part of the boundary."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..discretisation.solution import as_points
from ..models.fields import is_number
from .chain import Chain

Array = np.ndarray[Any, Any]
Indicator = Callable[[Array], Array]


def indicator(chain: Chain, region: Any, name: str) -> Indicator:
    """Whether points (n, d) lie in a region.

    Raises:
        ValueError: neither a marker nor (point, radius).
    """
    if callable(region):
        return lambda x: _marked(region, x, name)
    if isinstance(region, tuple) and len(region) == 2 and is_number(region[1]) and region[1] > 0:
        center = as_points(region[0], chain.domain.dim, f"the region {name!r}")[0]
        return lambda x: ((x - center) ** 2).sum(axis=1) <= region[1] ** 2
    raise ValueError(
        f"the region {name!r} is {region!r}; expected a marker of points x, or a tuple (point, radius) with a positive "
        "radius"
    )


def _marked(marker: Any, x: Array, name: str) -> Array:
    found = np.asarray(marker(np.ascontiguousarray(x.T)))
    if found.shape != (len(x),) or found.dtype != bool:
        raise ValueError(
            f"the marker of the region {name!r} returned {found.dtype} of shape {found.shape}; expected booleans of "
            f"shape ({len(x)},)"
        )
    return found


def stopped(chain: Chain, regions: Mapping[str, Any]) -> Chain:
    """The chain that also ends where a step ends in a region or beyond a part of the boundary (collective)."""
    parts = [region for region in regions.values() if isinstance(region, str)]
    inner = {name: indicator(chain, r, name) for name, r in regions.items() if not isinstance(r, str)}
    return chain.stopped(inner, parts)
