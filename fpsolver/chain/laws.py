"""Laws of a chain on the long run: stationary, quasi-stationary, and the slow modes of its transition operator."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from petsc4py import PETSc

import numpy as np
from dolfinx import fem

from .._answer import Answer, with_bar
from .._log import logger
from .._petsc import Options
from .._verbs import answers
from ..discretisation.solution import Solution
from ..longtime import spectrum as modes
from ..longtime import stationary as limits
from ..longtime.spectrum import Mode, QuasiStationary, Spectrum
from ..models.fields import is_number
from ._bars import bar, variants
from ._eigen import eigenpairs, spectral_radius
from ._regions import indicator
from ._solve import Shell, solve
from ._sources import field
from .chain import Chain
from .exits import need_exit

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
    """A law of the chain.  Its density is a projection, as the law may be singular; masses and expectations converge.

    Attributes:
        function: the projected density.
    """

    def __init__(self, chain: Chain, moments: PETSc.Vec, again: Callable[[Chain], PETSc.Vec], stats: Any, name: str):
        density = _projected(chain, moments)
        stats = {**stats, "density": SINGULAR}
        super().__init__(chain.function(density, name.replace(" ", "_")), stats, name, generator=chain)
        self._all: list[tuple[Chain, PETSc.Vec]] = [(chain, density)]
        self._again = again

    def _densities(self) -> list[tuple[Chain, PETSc.Vec]]:
        """This density and those of the chain's variants (collective)."""
        if len(self._all) == 1:
            for other in variants(self._all[0][0]):
                moments = self._again(other)
                self._all.append((other, _projected(other, moments)))
        return self._all

    def _measured(self, of: Callable[[Chain, PETSc.Vec], Array]) -> Measured:
        values = np.array([of(c, p) for c, p in self._densities()])
        flat = values.reshape(len(values), -1)
        error = bar(flat, 1e-12).reshape(values.shape[1:])
        return Measured(values[0][()], error[()])

    def expectation(self, f: Any) -> Measured:
        """∫ f p with its error bar, for a scalar source f (collective)."""

        def of(chain: Chain, density: PETSc.Vec) -> Array:
            load = chain.load(field(chain, f, "expectation"))
            return np.array(load.dot(density))

        return self._measured(of)

    def mass_in(self, region: Any) -> Measured:
        """Probability of a region: a marker of points x, or (point, radius) (collective)."""
        chain = self._all[0][0]
        inside = indicator(chain, region, "mass_in")

        def of(other: Chain, density: PETSc.Vec) -> Array:
            return np.array(other.load(lambda x: inside(x).astype(float)).dot(density))

        return self._measured(of)

    def mean(self) -> Measured:
        """Mean, shape (d,) (collective)."""
        return self._measured(lambda chain, density: _first(chain, density))

    def covariance(self) -> Measured:
        """Covariance, shape (d, d) (collective)."""

        def of(chain: Chain, density: PETSc.Vec) -> Array:
            mean, d = _first(chain, density), chain.domain.dim
            found = np.empty((d, d))
            for i in range(d):
                for j in range(i + 1):
                    found[i, j] = found[j, i] = chain.load(_product(mean, i, j)).dot(density)
            return found

        return self._measured(of)


def _first(chain: Chain, density: PETSc.Vec) -> Array:
    zero = np.zeros(chain.domain.dim)
    return np.array([chain.load(_product(zero, i)).dot(density) for i in range(chain.domain.dim)])


def _product(mean: Array, *factors: int) -> Callable[[Array], Array]:
    return lambda x: np.prod([x[:, i] - mean[i] for i in factors], axis=0)


@answers(limits.stationary, Chain)
def stationary(chain: Chain, *, options: Options | None = None) -> Law:
    """The invariant law: p = P*p, ∫p = 1 (collective).

    Solves (I − P* + p₀1ᵀ) p = p₀ with the uniform law p₀: as constants are invariant, the answer has mass one and is
    invariant; how fast laws get there, :func:`spectrum` tells.

    Raises:
        ValueError: mass leaves, or the invariant law is not unique.
    """
    if chain.exits:
        raise ValueError(
            f"stationary: mass leaves through {', '.join(chain.exits)}, so there is no invariant law; build the chain "
            "without absorbing parts."
        )

    def ask(other: Chain, tilted: bool = False) -> tuple[PETSc.Vec, Any]:
        begin = other.load(_tilt(other)) if tilted else other.integrals.copy()
        begin.scale(1.0 / begin.sum())
        shell = Shell(other.assembled.inverse, other.P, transpose=True, fixed=begin)
        return solve(shell, begin, "invariant law", options, "fp_stationary_")

    moments, figures = ask(chain)
    other, _ = ask(chain, tilted=True)  # where the limit depends on the start, the answers differ
    low, high = chain.cells.vertices.min(axis=(0, 1)), chain.cells.vertices.max(axis=(0, 1))
    first = [_first(chain, _projected(chain, m)) for m in (moments, other)]
    difference = float((np.abs(first[1] - first[0]) / (high - low)).max())
    if not difference < 1e-5:
        raise ValueError(
            "stationary: the invariant law of the chain is not unique to rounding: parts of the domain do not reach "
            f"each other (from two starts the means differ by {difference:.1e} of the domain). Ask on each of "
            "them, or add noise."
        )
    moments.scale(1.0 / moments.sum())
    if figures.suspect and (radius := spectral_radius(chain)) > 1 + 1e-9:
        logger.warning(
            "stationary: the discrete chain has an eigenvalue of %.6g beyond 1, which no chain has: the mesh is coarse",
            radius,
        )  # fmt: skip
    stats = {**chain.stats(), "iterations": figures.iterations, "residual": figures.residual}
    law = Law(chain, moments, lambda other: ask(other)[0], stats, "invariant law")
    logger.info("%s", law)
    return law


def _tilt(chain: Chain) -> Callable[[Array], Array]:
    """A density that is larger on one side of every coordinate."""
    low, high = chain.cells.vertices.min(axis=(0, 1)), chain.cells.vertices.max(axis=(0, 1))
    return lambda x: 1.0 + ((x - low) / (high - low)) @ np.arange(1.0, 1.0 + x.shape[1])


@answers(modes.spectrum, Chain)
def spectrum(chain: Chain, k: int = 6, *, options: Options | None = None) -> Spectrum:
    """The ``k`` largest eigenvalues λ of P as rates log λ / η, slowest first, with their modes (collective).

    Raises:
        ImportError: slepc4py is missing.
        NotConverged: fewer than ``k`` eigenvalues converged.
    """
    if not is_number(k) or int(k) != k or not 1 <= k < chain.M.getSize()[0]:
        raise ValueError(f"spectrum: k is {k!r}; a positive integer below the number of unknowns was expected.")
    values, left, residuals = eigenpairs(chain, int(k), False, options)
    other, right, _ = eigenpairs(chain, int(k), True, options)
    order = [int(np.abs(other - v).argmin()) for v in values]
    densities = [tuple(_projected(chain, v) for v in right[i]) for i in order]
    observables = []
    for i, (re, im) in enumerate(left):
        r, s = right[order[i]]
        product = (re.dot(r) - im.dot(s)) + 1j * (re.dot(s) + im.dot(r))
        observables.append(_scaled(re, im, 1.0 / product))
    with np.errstate(divide="ignore"):
        rates = np.log(values.astype(complex)) / chain.time_per_step
    pair = lambda name, modes: [Mode(*(chain.function(v, name) for v in m)) for m in modes]  # noqa: E731
    return Spectrum(rates, pair("right", densities), pair("left", observables), residuals, chain.time_per_step)


def _projected(chain: Chain, moments: PETSc.Vec) -> PETSc.Vec:
    """M⁻¹ moments as a new vector."""
    density = moments.duplicate()
    chain.assembled.inverse.mult(moments, density)
    return density


def _scaled(re: PETSc.Vec, im: PETSc.Vec, z: complex) -> tuple[PETSc.Vec, PETSc.Vec]:
    a, b = re.copy(), im.copy()
    a.scale(z.real)
    a.axpy(-z.imag, im)
    b.scale(z.real)
    b.axpy(z.imag, re)
    return a, b


@answers(modes.quasi_stationary, Chain)
def quasi_stationary(chain: Chain, *, options: Options | None = None) -> QuasiStationary:
    """Rate −log λ / η, density and backward mode of the slowest decay (collective).

    From the density, the number of steps is geometric with mean 1/(1 − λ), ``stats["steps"]``.

    Raises:
        ValueError: nothing absorbs, or the slowest mode is not real.
    """
    need_exit(chain, "quasi_stationary")
    values, right, residuals = eigenpairs(chain, 1, True, options)
    _, left, _ = eigenpairs(chain, 1, False, options)
    top = complex(values[0])
    if abs(top.imag) > 1e-9 or not 0 < top.real < 1 - 1e-11:
        raise ValueError(
            f"quasi_stationary: the largest eigenvalue of the chain is {top:.12g}, and a number in (0, 1) was "
            "expected: either no path ever leaves from some part of the domain, or the mesh resolves too little."
        )
    moments, mode = right[0][0], left[0][0]
    moments.scale(1.0 / moments.sum())
    density = _projected(chain, moments)
    mode.scale(1.0 / mode.dot(moments))
    stats = {**chain.stats(), "residual": float(residuals[0]), "steps": 1.0 / (1.0 - top.real), "eigenvalue": top.real}
    rate = float(-np.log(top.real) / chain.time_per_step)
    function: fem.Function = chain.function(density, "quasi_stationary_density")
    return QuasiStationary(rate, function, chain.function(mode, "mode"), stats, None, chain)  # type: ignore[arg-type]
