"""Whether what is to be periodic is: fields seen from both sides of the facets where a periodic mesh closes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import ufl

from .._errors import agree
from .._sample import Array, largest, neighbours, on_sides
from ..domains.domain import Domain
from ..models.process import Coefficients

TOLERANCE = 1e-6  # of the largest value


def across(domain: Domain, rows: Sequence[Any]) -> tuple[Array, Array, Array, Array]:
    """Centres of this rank's facets where the mesh closes, scalars on either side, their largest sizes (collective)."""
    mesh, d = domain.mesh, domain.dim
    cells, local = neighbours(mesh)
    inner = (cells >= 0).all(axis=1)
    sides = [np.stack((cells[inner, i], local[inner, i]), axis=1) for i in (0, 1)]
    a, b = (on_sides(mesh, [*ufl.SpatialCoordinate(mesh), *rows], side, 1)[0][:, 0] for side in sides)
    upper = (a[:, :d] > b[:, :d]).any(axis=1)[:, None]
    a, b = np.where(upper, b, a), np.where(upper, a, b)
    seam = (np.abs(a[:, :d] - b[:, :d]) > 0.5 * np.nanmin(np.ptp(domain.periods, axis=1))).any(axis=1)
    sizes = np.array([largest(domain.comm, np.abs(column)) for column in a[:, d:].T])
    return a[seam, :d], a[seam, d:], b[seam, d:], sizes


def is_periodic(domain: Domain, scalar: Any) -> bool:
    """Whether a scalar has the periods of the domain, if that has any (collective)."""
    if domain.periods is None:
        return True
    _, a, b, size = across(domain, [scalar])
    return largest(domain.comm, np.abs(a - b), 0.0) <= TOLERANCE * float(size[0])


def check_periodic(domain: Domain, coefficients: Coefficients) -> None:
    """Refuse a process that does not have the periods of its domain (collective)."""
    if domain.periods is None:
        return
    d, D = domain.dim, coefficients.D
    b = coefficients.beta if coefficients.drift is None else coefficients.drift
    names = [f"drift[{i}]" for i in range(d)] + [f"diffusion[{i}, {j}]" for i in range(d) for j in range(d)]
    x, one, other, sizes = across(domain, [*(b[i] for i in range(d)), *(D[i, j] for i in range(d) for j in range(d))])
    sizes = np.repeat([sizes[:d].max(), sizes[d:].max()], [d, d * d])
    wrong = np.argwhere(np.abs(one - other) > TOLERANCE * sizes)
    problem = None
    if len(wrong):
        i, k = wrong[0]
        problem = (
            f"the domain is periodic, the process is not: its {names[k]} is {one[i, k]:.6g} on one side of "
            f"{tuple(float(f'{c:.6g}') for c in x[i])} and {other[i, k]:.6g} on the other. Formulas of the period of "
            "the domain were expected."
        )
    agree(domain.comm, problem)
