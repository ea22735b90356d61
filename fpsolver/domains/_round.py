"""Circles and spheres that curved cells follow."""

from dataclasses import dataclass

import numpy as np

from ._arrays import Array

HIGHEST = 6
"""Degree of cells beyond which their shape is rounding."""


@dataclass(frozen=True)
class RoundShape:
    """Concentric circles or spheres.

    Attributes:
        center: shape (dim,).
        radii: one or two.
        h: length of edges of the first mesh.
    """

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
