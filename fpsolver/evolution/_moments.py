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

KEPT = 8  # generators: cyclic schedules alternate between few, a step of varying numbers uses five and its neighbour's
AFFINE = 1e-12  # largest relative deviation of G from an affine function
SAMPLES = np.linspace(0.0, 1.0, 65)  # of a leg, for the range of its numbers

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

    def __init__(self, gen: Generator, parts: Sequence[str]):
        self.gen, self.parts, self.assemblies = gen, list(parts), 0
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

    def varying(self, at: Callable[[float], Values], begin: float, end: float) -> Callable[[float], Moment]:
        """G(t) between two times: combined from two where it is affine in the only number."""
        numbers = np.array([list(at(begin + s * (end - begin)).values()) for s in SAMPLES])
        low, high = float(numbers.min()), float(numbers.max())
        name = next(iter(at(begin)))
        if numbers.shape[1] > 1 or low == high:
            return lambda t: [(1.0, self.frozen(at(t)))]
        share = 0.382
        inner, *ends = [self.frozen({name: x}) for x in (low + share * (high - low), low, high)]
        rest, scale = inner.G.copy(), inner.G.norm(PETSc.NormType.INFINITY)
        for weight, kept in zip((share - 1.0, -share), ends, strict=True):
            rest.axpy(weight, kept.G, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
        if rest.norm(PETSc.NormType.INFINITY) > AFFINE * scale:
            return lambda t: [(1.0, self.frozen(at(t)))]

        def combined(t: float) -> Moment:
            share = (at(t)[name] - low) / (high - low)
            return [(1.0 - share, self.frozen({name: low})), (share, self.frozen({name: high}))]

        return combined
