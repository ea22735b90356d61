"""Evolutions that grow although no law and no expectation can: the sign of an unstable discretisation.

∫|p| and sup |u| never grow.  Discretised, ∫|p| may: a point mass has up to half as many as there are nodes in a cell,
depending on its place in the cell.  With ``weighted`` nothing can grow, and values in the far tails mean nothing.
"""

from petsc4py import PETSc

import basix
import numpy as np

from .._errors import NotConverged
from .._sample import cell_type, total
from ..discretisation.assembly import to_function
from ..discretisation.generator import Generator
from ..discretisation.positivity import limiter

MEANS = 2.0  # integral of the cell means' absolute values: transport that is not resolved adds a few per cent
VALUES = 5.0  # largest absolute value at a node: a jump that is not resolved adds a fifth


def sizes(gen: Generator, density: bool, vector: PETSc.Vec) -> np.ndarray:
    """Integrals of |p| and of |cell means|, or the largest |u| (collective)."""
    if not density:
        return np.array([vector.norm(PETSc.NormType.NORM_INFINITY)])
    limit, function = limiter(gen), to_function(gen, vector)
    points, weights = basix.make_quadrature(cell_type(gen.domain.mesh), 2 * gen.degree)
    basis = gen.V.element.basix_element.tabulate(0, points)[0, :, :, 0]
    c, volumes = function.x.array[gen.V.dofmap.list[: limit.owned]], limit.volumes[: limit.owned]
    whole = volumes @ (abs(c @ basis.T) @ weights) / weights.sum()
    return total(gen.domain.comm, [whole, volumes @ abs(limit.means(function)[: limit.owned])])


def check_growth(gen: Generator, density: bool, start: np.ndarray, t: float, vector: PETSc.Vec, solves: int) -> None:
    """Refuse what has grown since it had the sizes ``start`` (collective).

    Raises:
        NotConverged: with the factor.
    """
    if not gen.weak.scheme.may_grow or not (start > 0).all():
        return
    factors = sizes(gen, density, vector) / start
    if (factors <= ([gen.V.dofmap.list.shape[1], MEANS] if density else [VALUES])).all():
        return
    what = "integral of its absolute value" if density else "largest absolute value"
    advice = (
        f"The solution's {what} grew by a factor of {factors[0]:.3g}, which that of the equation never does: the "
        "discretisation has a growing mode, or resolves nothing. Refine the mesh, take scheme='dg' or a lower degree, "
        "raise the quadrature degree (quadrature=), or add noise."
    )
    raise NotConverged(f"evolution to t = {t:.6g}", "DIVERGED_GROWTH", solves, float(factors[0]), "fp_evolve_", advice)
