"""The matrices of an evolution whose numbers change: assembled for a moment and kept, or combined from two."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from petsc4py import PETSc

import numpy as np

from .._petsc import Options
from ..discretisation.generator import Generator
from ._expm import Propagator
from ._integrate import functionals
from ._rosenbrock import Moment

KEPT = 8  # generators: cyclic schedules alternate between few, a step of varying numbers uses six and its neighbour's
CHANGE = 1e-4  # relative, of the numbers: the relative error of the difference quotient of G is its square
AFFINE = 1e-12  # largest relative deviation of G from an affine function
SAMPLES = np.linspace(0.0, 1.0, 65)  # of a leg, for the range of its numbers
SLOPE = 0.5 - 0.5 * np.cos(np.pi * np.arange(5) / 4)  # nodes in a step: the slope at its begin, of order four

Values = dict[str, float]


@dataclass
class Kept:
    """A generator with fixed numbers."""

    gen: Generator
    flux: Sequence[PETSc.Vec]
    core: Propagator | None = field(default=None)

    @property
    def G(self) -> PETSc.Mat:
        """Its forward operator."""
        return self.gen.G


class Moments:
    """G at any moment of a schedule (collective).

    Args:
        gen: generator of the process at any numbers.
        parts: absorbing parts whose outflux is wanted; the total comes first.
        options: PETSc options without the prefix ``fp_evolve_``.
    """

    def __init__(self, gen: Generator, parts: Sequence[str], options: Options | None):
        self.gen, self.parts, self.options = gen, list(parts), options
        self.assemblies = 0
        self._kept: dict[tuple[float, ...], Kept] = {}

    def frozen(self, values: Values) -> Kept:
        """The generator with these numbers, new or from the last few."""
        key = tuple(values.values())
        if key not in self._kept:
            while len(self._kept) >= KEPT:
                self._drop(next(iter(self._kept)))
            other = self.gen.replace(**values)
            self.assemblies += 1
            self._kept[key] = Kept(other, functionals(other, self.parts))
        self._kept[key] = self._kept.pop(key)  # most recently used last
        return self._kept[key]

    def propagator(self, values: Values) -> Propagator:
        """The exponential of the generator with these numbers."""
        kept = self.frozen(values)
        if kept.core is None:
            leaks = bool(self.gen.absorbing)
            kept.core = Propagator(self.gen.M, kept.G, dim=self.gen.domain.dim, options=self.options, leaks=leaks)
        return kept.core

    def varying(
        self, at: Callable[[float], Values], begin: float, end: float
    ) -> tuple[Callable[[float], Moment], Callable[[float, float], Moment]]:
        """G(t), and t, h -> dG/dt at the beginning of a step of length h, between two times."""
        numbers = np.array([list(at(begin + s * (end - begin)).values()) for s in SAMPLES])
        if numbers.shape[1] == 1:
            (name,), low, high = at(begin), float(numbers.min()), float(numbers.max())
            if low < high and self._is_affine(name, low, high):
                return self._combined(at, name, low, high)
        return lambda t: [(1.0, self.frozen(at(t)))], lambda t, h: self._difference(at, t, h)

    def _is_affine(self, name: str, low: float, high: float) -> bool:
        """Whether G of one number between two values is the combination of those at the ends."""
        share = 0.382
        inner, ends = self.frozen({name: low + share * (high - low)}), [self.frozen({name: x}) for x in (low, high)]
        rest, scale = inner.G.copy(), inner.G.norm(PETSc.NormType.INFINITY)
        for weight, kept in zip((share - 1.0, -share), ends, strict=True):
            rest.axpy(weight, kept.G, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
        defect = rest.norm(PETSc.NormType.INFINITY)
        rest.destroy()
        return bool(defect <= AFFINE * scale)

    def _combined(
        self, at: Callable[[float], Values], name: str, low: float, high: float
    ) -> tuple[Callable[[float], Moment], Callable[[float, float], Moment]]:
        def moment(t: float) -> Moment:
            share = (at(t)[name] - low) / (high - low)
            return [(1.0 - share, self.frozen({name: low})), (share, self.frozen({name: high}))]

        def derivative(t: float, h: float) -> Moment:
            rate = float(_slope(at, t, h)[0]) / (high - low)
            return [(-rate, self.frozen({name: low})), (rate, self.frozen({name: high}))]

        return moment, derivative

    def _difference(self, at: Callable[[float], Values], t: float, h: float) -> Moment:
        """dG/dt along the numbers' slope."""
        now, slope = at(t), _slope(at, t, h)
        if not slope.any():
            return [(0.0, self.frozen(now))]
        size = np.array([abs(v) for v in now.values()])
        step = CHANGE * float(np.min(np.maximum(size, h * abs(slope))[slope != 0] / abs(slope[slope != 0])))
        moved = [
            self.frozen({name: v + sign * step * d for (name, v), d in zip(now.items(), slope, strict=True)})
            for sign in (1.0, -1.0)
        ]
        return [(0.5 / step, moved[0]), (-0.5 / step, moved[1])]

    def _drop(self, key: tuple[float, ...]) -> None:
        kept = self._kept.pop(key)
        if kept.core is not None:
            kept.core.destroy()
        kept.gen.close()

    def destroy(self) -> None:
        """Free matrices and factorisations (collective)."""
        for key in list(self._kept):
            self._drop(key)


def _slope(at: Callable[[float], Values], t: float, h: float) -> np.ndarray:
    """Derivative of the numbers at the beginning of a step, from values inside it only: pieces end in jumps."""
    values = np.array([list(at(t + float(s) * h).values()) for s in SLOPE])
    coefficients = np.linalg.solve(np.vander(SLOPE, increasing=True), values)
    return np.asarray(coefficients[1] / h)
