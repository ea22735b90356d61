"""The invariant law of a chain: one solve, and whether there is only one."""

from operator import itemgetter
from typing import Any

from petsc4py import PETSc

import numpy as np

from .._log import logger
from .._petsc import Options
from ..chain import Chain
from ..chain.equations import Operator, solve, spectral_radius


def invariant(chain: Chain, options: Options | None, begin: PETSc.Vec | None = None) -> tuple[PETSc.Vec, Any]:
    """Moments of the invariant law, by (I − P* + p₀1ᵀ) p = p₀ with any law p₀; how the solve went (collective)."""
    begin = chain.integrals.copy() if begin is None else begin
    begin.scale(1.0 / begin.sum())
    operator = Operator(chain, transpose=True, fixed=begin)
    moments, figures = solve(operator, begin, "invariant law", options, "fp_stationary_")
    moments.scale(1.0 / moments.sum())
    return moments, figures


def check_unique(chain: Chain, moments: PETSc.Vec, figures: Any, options: Options | None) -> None:
    """Refuse a limit that depends on the start (collective)."""
    low, high = chain.cells.vertices.min(axis=(0, 1)), chain.cells.vertices.max(axis=(0, 1))
    tilt = chain.load(lambda x: 1.0 + ((x - low) / (high - low)) @ np.arange(1.0, 1.0 + x.shape[1]))
    other, _ = invariant(chain, options, tilt)
    change = chain.inverse * (other - moments)
    means = [chain.load(itemgetter((slice(None), i))).dot(change) for i in range(len(low))]
    difference = float((np.abs(means) / (high - low)).max())
    if not difference < 1e-5:
        raise ValueError(
            "stationary: the invariant law of the chain is not unique to rounding: parts of the domain do not reach "
            f"each other (from two starts the means differ by {difference:.1e} of the domain). Ask on each of "
            "them, or add noise."
        )
    if figures.suspect and (radius := spectral_radius(Operator(chain))) > 1 + 1e-9:
        logger.warning(
            "stationary: the discrete chain has an eigenvalue of %.6g beyond 1, which no chain has: the mesh is coarse",
            radius,
        )  # fmt: skip
