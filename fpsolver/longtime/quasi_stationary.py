"""The quasi-stationary law of an absorbed process: its slowest decay."""

from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from dolfinx import fem

from .._answer import figures, need_steps, steps_of, with_bar
from .._arguments import need_still
from .._errors import NotConverged
from .._log import logger
from .._petsc import Options
from ..chain import Chain
from ..chain.equations import bar, variants
from ..chain.refinement import MAX_UNKNOWNS, to_accuracy
from ..discretisation.assembly import to_density, to_function
from ..discretisation.generator import Generator
from ..discretisation.metastable import UNRESOLVED, slowest_mode
from ..discretisation.others import Others
from ..discretisation.positivity import limiter
from ..discretisation.solver import statistics
from ..evolution.law import Law
from ..models.fields import integrate
from ._modes import vectors
from .spectrum import modes_of, slow_modes

_METASTABLE = 1e-4  # rate relative to the next one below which the next degree must confirm it
_CHANGE = 0.5


class QuasiStationary(Law):
    """The quasi-stationary law: started from ``density``, the process leaves at constant ``rate``.

    Attributes:
        rate: λ > 0; the exit time from ``density`` is exponential with this rate.
        rate_error: its error bar (collective when first asked for); ``.error`` is that of the density.
        density: ``Function``, mass one, non-negative (also ``function``); ``stats["minimum"]`` is the smallest
            value before it was made so.
        mode: backward mode φ with ∫ φ·density = 1: P(τ > t | x) ≈ φ(x) e^{−λt} for large t.
    """

    def __init__(self, found: "_Slowest", gen: Generator | Chain, limiter: Any, again: Any, unit: float = 1):
        law = lambda other: again(other).density  # noqa: E731
        super().__init__(gen, found.density, found.stats, "quasi-stationary density", law, limiter)
        self._found, self._rates, self._per = found, again, unit

    rate = property(lambda self: self._per * self._found.rate, doc="λ, per unit of time, or per step.")
    mode = property(lambda self: self._found.mode, doc="The backward mode φ.")
    density = property(lambda self: self.function, doc="The same as ``function``.")

    @cached_property
    def rate_error(self) -> float:
        """Error bar of the rate."""
        gen, rate = self.generator, self._found.rate
        if isinstance(gen, Chain):
            error = bar(np.array([rate, *(self._rates(c).rate for c in variants(gen))]), 1e-12)
        else:
            others = Others(gen, self._found, self._rates)
            error = others.bars(lambda _, found: np.array([found.rate]))[0]
        return self._per * float(error)

    sure = False

    def accuracy(self) -> tuple[float, float]:
        """The rate and its error bar."""
        return self.rate, self.rate_error

    def by_cells(self) -> None:
        """All cells are refined: where rates come from the density is small."""

    def in_steps(self) -> "QuasiStationary":
        """The same with the rate per step of an algorithm (collective)."""
        unit = need_steps(steps_of(self.generator.process), "this rate")
        return QuasiStationary(self._found, self.generator, self._limiter, self._rates, unit)

    def __repr__(self) -> str:
        unit = steps_of(self.generator.process)
        steps = "" if unit is None else f" ({1 / (self._found.rate * unit):.6g} steps)"
        known = self.rate_error if "rate_error" in self.__dict__ else None
        text = f"quasi-stationary law: rate {with_bar(self.rate, known)}, mean exit time {1 / self.rate:.6g}{steps}"
        return f"{text}\n  {figures(self._stats)}"


class _Slowest(NamedTuple):
    """The slowest decay; of the variant of a chain the density is given by its coefficients, and has no mode."""

    rate: float
    density: Any
    mode: fem.Function | None
    stats: dict[str, Any]


def quasi_stationary(
    gen: Generator | Chain, *, rtol: float | None = None, max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
) -> QuasiStationary:  # fmt: skip
    """Rate, density and backward mode of the slowest decay of an absorbed process (collective).

    With the ``weighted`` scheme through the capacities of the wells, so that rates far below rounding are right.  Of a
    chain the rate is −log λ / η; from the density the number of steps is geometric with mean 1/(1 − λ),
    ``stats["steps"]``.  With ``rtol`` the mesh is refined until the rate's error bar meets it.  ``options`` as for
    :func:`spectrum`, with ``weighted`` PETSc's without the prefix ``fp_exit_``.

    Raises:
        ValueError: nothing absorbs, or the slowest mode is not real and of one sign.
        NotConverged: the eigenvalue solver failed, or rounding has made the rate meaningless.
    """
    need_still(gen, "quasi_stationary")
    if not gen.absorbing:
        raise ValueError("quasi_stationary: nothing absorbs; the invariant law is what stationary(gen) computes.")

    def ask(here: Generator | Chain) -> QuasiStationary:
        again = cache(lambda other: _decay(other, options, variant=True))
        limits = limiter(here) if isinstance(here, Generator) else None
        return QuasiStationary(_decay(here, options), here, limits, again)

    return to_accuracy("quasi_stationary", gen, ask, "fp_spectrum_", rtol=rtol, max_unknowns=max_unknowns)


def _decay(gen: Generator | Chain, options: Options | None, variant: bool = False) -> _Slowest:
    if isinstance(gen, Chain) and variant:  # whose cells are no mesh
        values, modes, _ = modes_of(gen, 1, 0, False, options)
        p = vectors(gen, modes)[0][0]
        p.scale(1.0 / gen.integrals.dot(p))
        return _Slowest(-float(np.log(values[0].real)) / gen.time_per_step, p, None, {})
    by_capacities = isinstance(gen, Generator) and gen.weak.scheme.by_capacities
    find = _by_capacities if by_capacities else partial(_slowest, check=not variant)
    rate, density, mode, residual = find(gen, options)
    mass = _mass(gen, density)
    density.x.array[:] /= mass
    mode.x.array[:] *= mass
    if isinstance(gen, Chain):
        top = float(np.exp(-rate * gen.time_per_step))
        stats = {**gen.stats(), "residual": residual, "steps": 1.0 / (1.0 - top), "eigenvalue": top}
        return _Slowest(rate, density, mode, stats)
    stats = {**statistics(gen), "residual": residual, "minimum": limiter(gen).minimum(density)}
    return _Slowest(rate, density, mode, stats)


def _mass(gen: Generator | Chain, density: fem.Function) -> float:
    if isinstance(gen, Chain):  # by its own points
        return float(gen.integrals.dot(gen.vector(density)))
    return integrate(gen.domain.mesh, density, 2 * gen.degree)


def _slowest(gen: Any, options: Options | None, check: bool = True) -> tuple[float, fem.Function, fem.Function, float]:
    """Rate, density and mode whose product has integral one, residual."""
    chain = isinstance(gen, Chain)
    slow = slow_modes(gen, 1 if chain else min(2, gen.G.getSize()[0] - 1), options)
    value, density = slow.eigenvalues[0], slow.right[0][0]
    rate, least = -float(value.real), 1e-11 / gen.time_per_step if chain else 0.0
    if abs(value.imag) > 1e-8 * abs(rate) or rate <= least or _mass(gen, density) == 0:
        advice = "no path ever leaves from some part of the domain, or" if chain else "use scheme='dg', or"
        raise ValueError(
            f"quasi_stationary: the eigenvalue closest to zero is {value:.6g}; a real negative one was expected: "
            f"{advice} the mesh resolves too little. Refine it."
        )
    if check and isinstance(gen, Generator) and rate < _METASTABLE * abs(slow.eigenvalues[-1]):
        _check_resolution(gen, rate, options)
    return rate, density, slow.left[0][0], float(slow.residuals[0])


def _check_resolution(gen: Generator, rate: float, options: Options | None) -> None:
    """Refuse a metastable rate that the next degree does not confirm: meshes without the barrier give any."""
    with gen.with_degree(gen.degree + 1) as finer:
        other = -float(slow_modes(finer, 1, options).eigenvalues[0].real)
    change = abs(other - rate) / rate
    if not change < _CHANGE:
        advice = (
            f"The rate is {rate:.3g}, but {other:.3g} with degree {gen.degree + 1}: the mesh does not resolve where "
            "paths leave. Refine it, or take scheme='weighted' if the invariant density is known."
        )
        raise NotConverged("quasi_stationary", UNRESOLVED, 0, change, "fp_spectrum_", advice)
    if change > 0.01:
        logger.warning("quasi_stationary: the rate %.4g changes by %.1g %% with the next degree", rate, 100 * change)


def _by_capacities(gen: Any, options: Options | None) -> tuple[float, fem.Function, fem.Function, float]:
    """The same with the scheme ``weighted``, in which forward and backward modes are one vector."""
    rate, u, change = slowest_mode(gen, options)
    return rate, to_density(gen, u), to_function(gen, u), change
