"""Circles and spheres that curved cells follow, and quadratic ones that enclose the exact volume."""

from dataclasses import dataclass
from itertools import combinations

import basix
import numpy as np

from ._arrays import Array, RawMesh

HIGHEST = 6
"""Degree of cells beyond which their shape is rounding."""


@dataclass(frozen=True)
class RoundShape:
    """Concentric circles or spheres: one or two radii; ``h`` is the length of edges of the first mesh."""

    center: Array
    radii: tuple[float, ...]
    h: float

    def snapped(self, x: Array) -> Array:
        """Points (dim, n), those that belong to a curve moved onto it.

        Quadratic cells stay within r θ⁴/12 of it, θ half the angle of an edge, which is less than ¾ h/r; no node
        inside is as near in the meshes of practice.
        """
        away = x - self.center[:, None]
        distance, moved = np.linalg.norm(away, axis=0), x.copy()
        for r in self.radii:
            near = np.abs(distance - r) < max(0.06 * r * min(self.h / r, 1.0) ** 4, 1e-9 * r)
            moved[:, near] = self.center[:, None] + r * away[:, near] / distance[near]
        return moved


def balance(raw: RawMesh, center: Array, radius: float) -> None:
    """Shift the nodes on a sphere that are no vertices so that quadratic facets enclose its volume.

    With all nodes on the sphere the facets lie inside by r θ⁴/15 on average, θ the half angle of an edge, which is a
    defect of order h⁴ in every answer.
    """
    dim, x = raw.dim, raw.points - center
    on = np.abs(np.linalg.norm(x, axis=1) - radius) < 1e-6 * radius
    edge = {pair: raw.cells[:, -1 - i] for i, pair in enumerate(combinations(range(dim + 1), 2))}  # basix: last first
    faces = list(combinations(range(dim + 1), dim))
    rows = [[*raw.cells[:, f].T, *(edge[e] for e in reversed(list(combinations(f, 2))))] for f in faces]
    facets = np.concatenate([np.stack(row, axis=1) for row in rows])
    facets = facets[on[facets].all(axis=1)]
    bulge = np.zeros(len(x))
    for i, (a, b) in enumerate(reversed(list(combinations(range(dim), 2)))):
        half = np.linalg.norm(x[facets[:, a]] - x[facets[:, b]], axis=1) / (2 * radius)
        bulge[facets[:, dim + i]] = (1 - np.sqrt(1 - half**2)) ** 2
    cell = (basix.CellType.interval, basix.CellType.triangle)[dim - 2]
    points, weights = basix.make_quadrature(cell, 10)
    p2 = basix.create_element(basix.ElementFamily.P, cell, 2, basix.LagrangeVariant.equispaced)
    shapes = p2.tabulate(1, points)[..., 0]

    def volume(kappa: float) -> float:
        moved = (x * (1 + kappa * bulge)[:, None])[facets]
        cones = np.stack([np.einsum("qn,fnd->fqd", shape, moved) for shape in shapes], axis=2)
        return float(np.abs(np.linalg.det(cones) @ weights).sum() / dim)

    exact = (np.pi, 4 / 3 * np.pi)[dim - 2] * radius**dim
    low, high = volume(0.0), volume(0.1)
    raw.points[:] += (0.1 * (exact - low) / (high - low) * bulge)[:, None] * x
