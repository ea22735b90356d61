"""Invariant laws: densities that answer for masses, means and expectations with error bars."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any

from petsc4py import PETSc

import numpy as np

from .._answer import Answer, with_bar
from .._log import logger
from .._petsc import Options
from ..chain import Chain
from ..chain.equations import Operator, bar, solve, spectral_radius, variants
from ..chain.sources import field
from ..discretisation.solution import Solution
from ..domains.regions import as_inside, marker_of

Array = np.ndarray[Any, Any]
SINGULAR = "a projection: laws of chains may be singular; masses and expectations converge"


@dataclass(frozen=True)
class Measured(Answer):
    """A number, or an array of numbers, with its error bar.

    Attributes:
        value: what was found.
        error: its absolute error bar, of the same shape.
    """

    value: Any
    error: Any

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        if np.ndim(self.value):
            return f"{self.value} ± {np.max(self.error):.1g}"
        return with_bar(float(self.value), float(self.error))


class Law(Solution):
    """A law of a chain.  Its density is a projection, as the law may be singular; masses and expectations converge.

    Attributes:
        function: the projected density.
    """

    def __init__(self, chain: Chain, density: PETSc.Vec, again: Callable[[Chain], PETSc.Vec], stats: Any, name: str):
        super().__init__(chain.function(density), {**stats, "density": SINGULAR}, name, generator=chain)
        self._density, self._again = density, again

    @cached_property
    def _densities(self) -> list[tuple[Chain, PETSc.Vec]]:
        """This density and those of the chain's variants (collective)."""
        chain: Chain = self.generator
        return [(chain, self._density), *((other, self._again(other)) for other in variants(chain))]

    def _measured(self, of: Callable[[Chain, PETSc.Vec], Any]) -> Measured:
        values = np.array([of(c, p) for c, p in self._densities], dtype=float)
        return Measured(values[0][()], bar(values, 1e-12)[()])

    def expectation(self, f: Any) -> Measured:
        """∫ f p with its error bar, for a scalar source f (collective)."""
        return self._measured(lambda chain, p: chain.load(field(chain, f, "expectation")).dot(p))

    def mass_in(self, region: Any) -> Measured:
        """Probability of a region: a marker of points x, or (point, radius) (collective)."""
        inside = as_inside(marker_of(region, self.generator.domain.dim, "mass_in"), "region 'mass_in'")
        return self._measured(lambda chain, p: chain.load(inside).dot(p))

    def mean(self) -> Measured:
        """Mean, shape (d,) (collective)."""
        return self._measured(_mean)

    def covariance(self) -> Measured:
        """Covariance, shape (d, d) (collective)."""

        def of(chain: Chain, p: PETSc.Vec) -> Array:
            mean, found = _mean(chain, p), np.empty((chain.domain.dim,) * 2)
            for i, j in combinations_with_replacement(range(chain.domain.dim), 2):
                found[i, j] = found[j, i] = chain.load(_product(mean, i, j)).dot(p)
            return found

        return self._measured(of)


def _mean(chain: Chain, p: PETSc.Vec) -> Array:
    return np.array([chain.load(_product(np.zeros(i + 1), i)).dot(p) for i in range(chain.domain.dim)])


def _product(mean: Array, *of: int) -> Callable[[Array], Array]:
    """Of coordinates, counted from their mean."""
    return lambda x: np.prod([x[:, i] - mean[i] for i in of], axis=0)


def invariant(chain: Chain, options: Options | None, begin: PETSc.Vec | None = None) -> tuple[PETSc.Vec, Any]:
    """Moments of the invariant law, and how the solve went (collective).

    Solves (I − P* + p₀1ᵀ) p = p₀ with any law p₀, by default the uniform one: as constants are invariant, the answer
    has mass one and is invariant.
    """
    begin = chain.integrals.copy() if begin is None else begin
    begin.scale(1.0 / begin.sum())
    operator = Operator(chain, transpose=True, fixed=begin)
    moments, figures = solve(operator, begin, "invariant law", options, "fp_stationary_")
    moments.scale(1.0 / moments.sum())
    return moments, figures


def check_unique(chain: Chain, moments: PETSc.Vec, figures: Any, options: Options | None) -> None:
    """Refuse a limit that depends on the start (collective).

    Raises:
        ValueError: the means from two starts differ.
    """
    low, high = chain.cells.vertices.min(axis=(0, 1)), chain.cells.vertices.max(axis=(0, 1))
    tilt = chain.load(lambda x: 1.0 + ((x - low) / (high - low)) @ np.arange(1.0, 1.0 + x.shape[1]))
    other, _ = invariant(chain, options, tilt)
    change = chain.inverse * (other - moments)
    difference = float((np.abs(_mean(chain, change)) / (high - low)).max())
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
