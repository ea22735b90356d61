"""Points in cells: lattices that are shifted at random in each cell, seeded by the cell and not by the rank."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._cells import Cells, mixed, uniform

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Points:
    """Points to integrate with, those of a cell side by side."""

    cell: Array  #: its global number, ascending, shape (n,)
    x: Array  #: coordinates, shape (n, d)
    reference: Array  #: on the reference cell, shape (n, d)
    weight: Array  #: volume of the cell over its number of points, shape (n,)
    key: Array  #: a number of 64 bits for each, for further random numbers


def lattice(n: int, dim: int) -> Array:
    """n points of a Kronecker lattice in the unit cube, shape (n, dim): equal spacing along the first axis."""
    i, root = np.arange(n), 2.0
    for _ in range(64):  # of x^dim = x + 1, the golden ratio's kin
        root = (1.0 + root) ** (1.0 / dim)
    return np.column_stack((i / n, (i[:, None] * root ** -np.arange(1.0, dim)) % 1.0))


def points_in(cells: Cells, chosen: Array, count: Array, seed: int) -> Points:
    """Points in the cells ``chosen`` (m,), ``count`` (m,) of each, equally weighted."""
    d = cells.dim
    keys = mixed(cells.keys[chosen] ^ mixed(np.full(1, seed, dtype=np.uint64)))
    shift = np.stack([uniform(mixed(keys + np.uint64(i))) for i in range(d)], axis=1)
    which = np.repeat(np.arange(len(chosen)), count)
    number = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    u: Array = np.empty((len(which), d))
    for n in np.unique(count):
        mine = count[which] == n
        u[mine] = lattice(int(n), d)[number[mine]]
    u = (u + shift[which]) % 1.0
    # folding the cube into the simplex of descending coordinates keeps the uniform law
    u = -np.sort(-u, axis=1)
    bary = np.concatenate((1.0 - u[:, :1], u[:, :-1] - u[:, 1:], u[:, -1:]), axis=1)
    cell = chosen[which]
    # the corners in an order of their own, so that nothing depends on how ranks number them
    order = np.argsort(cells.nodes[chosen], axis=1)
    place = np.argsort(order, axis=1)[which]
    bary = np.take_along_axis(bary, place, axis=1)
    x = np.einsum("nv,nvi->ni", bary, cells.vertices[cell])
    weight = (cells.volumes[chosen] / count)[which]
    with np.errstate(over="ignore"):
        key = mixed(keys[which] + np.uint64(0x632BE59BD9B4E019) * (number + 1).astype(np.uint64))
    return Points(cell, x, bary[:, 1:], weight, key)
