"""Evolutions that grow although no law and no expectation can: the sign of an unstable discretisation."""

from petsc4py import PETSc

import basix
import numpy as np

from .._errors import NotConverged
from .._sample import cell_type, total
from ..discretisation.assembly import to_function
from ..discretisation.generator import Generator
from ..discretisation.positivity import limiter
from ._expm import Snapshot

MEANS = 2.0  # integral of the cell means' absolute values: transport that is not resolved adds a few per cent
VALUES = 5.0  # largest absolute value at a node: a jump that is not resolved adds a fifth


class Growth:
    """Compares densities or expectations with what there was at time 0 (collective).

    ∫|p| and sup |u| never grow.  Discretised, ∫|p| may: a point mass has up to half as many as there are nodes in a
    cell, depending on its place in the cell.  With ``weighted`` nothing can grow, and values in the far tails mean
    nothing.
    """

    def __init__(self, gen: Generator, density: bool, start: PETSc.Vec):
        self._gen, self._density = gen, density
        nodes = gen.V.dofmap.list.shape[1]
        self._allowed = np.array([float(nodes), MEANS] if density else [VALUES])
        points, weights = basix.make_quadrature(cell_type(gen.domain.mesh), 2 * gen.degree)
        self._values = gen.V.element.basix_element.tabulate(0, points)[0, :, :, 0]
        self._weights = weights / weights.sum()
        self._start = self._sizes(start)

    def _sizes(self, vector: PETSc.Vec) -> np.ndarray:
        """Integrals of |p| and of |cell means|, or the largest |u|."""
        if not self._density:
            return np.array([vector.norm(PETSc.NormType.NORM_INFINITY)])
        limit = limiter(self._gen)
        function = to_function(self._gen, vector)
        c = function.x.array[self._gen.V.dofmap.list[: limit.owned]]
        volumes = limit.volumes[: limit.owned]
        whole = volumes @ (abs(c @ self._values.T) @ self._weights)
        return total(self._gen.domain.comm, [whole, volumes @ abs(limit.means(function)[: limit.owned])])

    def check(self, snapshot: Snapshot, solves: int) -> None:
        """Refuse what has grown (collective).

        Raises:
            NotConverged: with the factor.
        """
        if not self._gen.weak.scheme.may_grow or not (self._start > 0).all():
            return
        factors = self._sizes(snapshot.vector) / self._start
        if (factors <= self._allowed).all():
            return
        what = "integral of its absolute value" if self._density else "largest absolute value"
        advice = (
            f"The solution's {what} grew by a factor of {factors[0]:.3g}, which that of the equation never does: the "
            "discretisation has a growing mode, or resolves nothing. Refine the mesh, take scheme='dg' or a lower "
            "degree, raise the quadrature degree (quadrature=), or add noise."
        )
        until = f"evolution to t = {snapshot.time:.6g}"
        raise NotConverged(until, "DIVERGED_GROWTH", solves, float(factors[0]), "fp_evolve_", advice)
