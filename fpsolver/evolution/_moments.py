"""The matrices of an evolution whose numbers change: assembled for a moment and kept, or combined from two."""

from collections.abc import Callable, Sequence

from petsc4py import PETSc

import numpy as np

from .._petsc import Options
from ..discretisation.fluxes import exit_flux, total_flux
from ..discretisation.generator import Generator, derived
from ..discretisation.solver import Key, merged
from ._expm import Propagator
from ._rosenbrock import Frozen, Moment

KEPT = 8  # generators: cyclic schedules alternate between few, a step of varying numbers uses six and its neighbour's
CHANGE = 1e-4  # relative, of the numbers: the relative error of the difference quotient of G is its square
AFFINE = 1e-12  # largest relative deviation of G from an affine function
SAMPLES = np.linspace(0.0, 1.0, 65)  # of a leg, for the range of its numbers
SLOPE = 0.5 - 0.5 * np.cos(np.pi * np.arange(5) / 4)  # nodes in a step: the slope at its begin, of order four

Values = dict[str, float]


def propagator(gen: Generator, options: Options | None = None) -> Propagator:
    """The generator's propagator, with the factorisations that earlier evolutions made (collective)."""
    return _propagator(gen, merged(gen, options))


@derived
def _propagator(gen: Generator, options: Key) -> Propagator:
    return Propagator(gen.M, gen.G, dim=gen.domain.dim, options=dict(options), leaks=bool(gen.absorbing))


def functionals(gen: Generator, parts: Sequence[str]) -> list[PETSc.Vec]:
    """Outflux in all and through each absorbing part."""
    return [total_flux(gen), *(exit_flux(gen, part) for part in parts)] if parts else []


class Moments:
    """G at any moment of a schedule, and what leaves through some parts (collective)."""

    def __init__(self, gen: Generator, parts: Sequence[str], options: Options | None):
        self.gen, self.parts, self.options = gen, list(parts), options
        self.assemblies = 0
        self._kept: dict[tuple[float, ...], Generator] = {}

    def generator(self, values: Values) -> Generator:
        """The generator with these numbers, new or from the last few."""
        key = tuple(values.values())
        if not key:  # no schedule
            return self.gen
        if key not in self._kept:
            while len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept))).close()
            self._kept[key] = self.gen.replace(**values)
            self.assemblies += 1
        self._kept[key] = self._kept.pop(key)  # most recently used last
        return self._kept[key]

    def frozen(self, values: Values) -> Frozen:
        """G and what leaves with these numbers."""
        gen = self.generator(values)
        return Frozen(gen.G, functionals(gen, self.parts))

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
        return bool(rest.norm(PETSc.NormType.INFINITY) <= AFFINE * scale)

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

    def destroy(self) -> None:
        """Free matrices and factorisations (collective)."""
        for gen in self._kept.values():
            gen.close()


def _slope(at: Callable[[float], Values], t: float, h: float) -> np.ndarray:
    """Derivative of the numbers at the beginning of a step, from values inside it only: pieces end in jumps."""
    values = np.array([list(at(t + float(s) * h).values()) for s in SLOPE])
    coefficients = np.linalg.solve(np.vander(SLOPE, increasing=True), values)
    return np.asarray(coefficients[1] / h)
