"""Where a step leads: the cell of each image, or the absorbing part through which it left.

Walls follow the very rule of ``simulate(method="sgd")``: only ends of steps are seen; an end outside leaves through
the part of the boundary that the straight step crosses, and is mirrored back where that part reflects.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._answer import place
from ..pointwise.meeting import land
from ..pointwise.walls import Walls
from ._cells import Cells
from ._points import Points
from ._steps import Steps

Array = np.ndarray[Any, Any]
Region = Callable[[Array], Array]
"""Whether points (n, d) lie in a region, shape (n,)."""


@dataclass(frozen=True)
class Images:
    """Of the points of some cells, those that stay (m) and those that leave (e)."""

    source: Array  #: number of the point they come from, shape (m,)
    weight: Array  #: probability of the batch, shape (m,)
    cell: Array  #: shape (m,)
    reference: Array  #: coordinates there, shape (m, d)
    left_source: Array
    left_weight: Array
    left_part: Array  #: number of the part, shape (e,)
    left_at: Array  #: where they crossed it, shape (e, d)
    mirrored: float  #: probability times volume of the images that reflecting walls sent back


def follow(
    cells: Cells, walls: Walls, steps: Steps, points: Points, regions: Sequence[Region] = (), parts: int = 0
) -> Images:
    """Images of points; absorbing walls have labels 0, ..., parts − 1, absorbing regions those that follow."""
    n, nb = len(points.cell), len(steps.weights)
    with np.errstate(all="ignore"):
        y = steps.images(np.ascontiguousarray(points.x.T), points.key)
    y = y.reshape(cells.dim, nb * n).T
    if not np.isfinite(y.sum()):
        bad = int(np.flatnonzero(~np.isfinite(y).all(axis=1))[0])
        raise ValueError(
            f"Chain: the step from {place(points.x[bad % n])} with batch {bad // n} is not finite: the gradients are "
            "not finite there, or the learning rate is too large for their growth."
        )
    source, weight = np.tile(np.arange(n), nb), np.repeat(steps.weights, n)
    cell, reference = cells.locate(walls.wrapped(y.T).T)
    outside = np.flatnonzero(cell < 0)
    label, at, mirrored = np.full(len(y), -1), None, 0.0
    if outside.size:
        met = land(walls, points.x[source[outside]].T, y[outside].T)
        label[outside] = met.part
        stay = outside[~met.out]
        _refuse_far(cells, points, source, walls.wrapped(y.T).T, stay)
        back = walls.wrapped(met.y[:, ~met.out]).T
        cell[stay], reference[stay] = cells.locate(back, 1e-6)
        if (lost := stay[cell[stay] < 0]).size:
            raise ValueError(
                f"Chain: from {place(points.x[source[lost[0]]])} a step is mirrored to where there is no cell."
            )
        mirrored = float((weight[stay] * points.weight[source[stay]]).sum())
        y[stay], at = back, np.full((len(y), cells.dim), np.nan)
        at[outside] = met.point.T
    for number, region in enumerate(regions):
        inside = np.flatnonzero(label < 0)
        label[inside[np.asarray(region(walls.wrapped(y[inside].T).T))]] = parts + number
    gone, stays = np.flatnonzero(label >= 0), np.flatnonzero(label < 0)
    where = y[gone] if at is None else np.where(np.isnan(at[gone]), y[gone], at[gone])
    return Images(
        source[stays], weight[stays], cell[stays], reference[stays],
        source[gone], weight[gone], label[gone], where, mirrored,
    )  # fmt: skip


def _refuse_far(cells: Cells, points: Points, source: Array, y: Array, stay: Array) -> None:
    """Mirrors are for steps that cross a wall by a little; what leaves for good needs a part that absorbs it."""
    low, high = cells.vertices.min(axis=(0, 1)), cells.vertices.max(axis=(0, 1))
    extent = high - low
    far = ((y[stay] < low - extent) | (y[stay] > high + extent)).any(axis=1)
    if far.any():
        one = stay[far.argmax()]
        raise ValueError(
            f"Chain: a step from {place(points.x[source[one]])} leads to {place(y[one])}, beyond a reflecting wall "
            "by more than the domain's size. Declare that part of the boundary as absorbing, enlarge the domain, or "
            "take a smaller learning rate."
        )
