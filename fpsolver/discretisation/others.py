"""Error bars: how an answer differs from those of other degrees, of a closer shape, of less diffusion at walls.

At singularities the next degree removes only part of the error: answers converge like k⁻² where absorbing and
reflecting boundaries meet (solution and occupation density behave like r^½), of which k = 4 → 5 removes 36 %.  Degree
k − 1 shows how fast an answer converges.  Where that is slow, or too fast to be true, degree k + 2 is taken as well;
the power law through three answers gives what remains.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .._log import logger
from .._sample import own_cells
from .generator import Generator, derived

Array = np.ndarray[Any, Any]
_POWERS = np.linspace(40.0, 2.0, 400)  # of k in the error of J; the slowest is that of r^½ singularities
# J_{k+1} − J_k over J_k − J_{k−1}: below by symmetry, above at singularities, degree k + 2 is needed as well.
# Measured at a kinetic exit: with 0.08 the bar is 0.39 times the error without it, and 0.92 with it.  In three
# dimensions it costs ten times the answer.
_TRUSTED = {1: (0.02, 0.05), 2: (0.02, 0.05), 3: (0.02, 0.4)}

Measure = Callable[[Generator, Any], Array]
"""Numbers of an answer of some generator, shape (n,)."""


@derived
def _halved(gen: Generator) -> Generator:
    return gen.with_domain(gen.domain.refine(own_cells(gen.domain.mesh)))


@derived
def of_degree(gen: Generator, degree: int) -> Generator:
    """The generator of another degree, kept with this one (collective)."""
    return gen.with_degree(degree)


def remaining(k: int, step: Array, lowest: int, first: Array, second: Array) -> Array:
    """Error at degree k over ``step`` = J_{k+1} − J_k, if it is a power of k; shape (n,).

    The power fits the corrections ``first`` and ``second`` from degree ``lowest`` to the next and the one after.  It is
    nearly one where J converges fast, or not monotonically, which tells nothing.
    """
    error = [float(lowest + i) ** -_POWERS for i in range(3)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(second / first, nan=0.0, posinf=np.inf, neginf=0.0)
    power = np.interp(ratio, (error[1] - error[2]) / (error[0] - error[1]), _POWERS)
    return np.abs(step) / (1.0 - (k / (k + 1.0)) ** power)


@dataclass
class Others:
    """One answer, and the same of generators like its own, asked for when they are needed (collective)."""

    gen: Generator  #: whose answer it is
    answer: Any
    ask: Callable[[Generator], Any]  #: the answer of another generator
    bent: bool = False  #: whether data may jump or bend inside cells
    _known: dict[int, Any] = field(default_factory=dict)

    def of_degree(self, degree: int) -> tuple[Generator, Any]:
        """The generator of another degree and its answer."""
        gen = of_degree(self.gen, degree)
        if degree not in self._known:
            self._known[degree] = self.ask(gen)
        return gen, self._known[degree]

    def bars(self, measure: Measure) -> Array:
        """Error bars of numbers of the answer, shape (n,)."""
        self.gen = self.gen.opened()
        here = measure(self.gen, self.answer)
        rough = self.gen.rough.number or self.bent
        bars = self._rough(measure, here) if rough else self._smooth(measure, here)
        if self._half_walls is not None:  # every degree adds it
            bars = bars + 2.0 * np.abs(measure(*self._half_walls) - here)
        return bars + self.of_shape(measure)

    def of_shape(self, measure: Measure) -> Array:
        """Their part that is what cells change which follow the domain's shape better, shape (n,)."""
        here = measure(self.gen, self.answer)
        return np.zeros_like(here) if self._closer is None else np.abs(measure(*self._closer) - here)

    @cached_property
    def _half_walls(self) -> tuple[Generator, Any] | None:
        if self.gen.at_walls is None:
            return None
        other = self.gen.with_half_walls()
        return other, self.ask(other)

    @cached_property
    def _closer(self) -> tuple[Generator, Any] | None:
        closer = self.gen.domain.closer()
        if closer is None:
            return None
        try:
            other = self.gen.with_domain(closer)
            return other, self.ask(other)
        except Exception as e:  # sources may be tied to the mesh in many ways
            logger.warning("the error bar leaves out how well curved cells follow the domain's shape: %s", e)
            return None

    def _smooth(self, measure: Measure, here: Array) -> Array:
        k = self.gen.degree
        step = measure(*self.of_degree(k + 1)) - here
        if k == 1:
            return np.abs(step)
        before = here - measure(*self.of_degree(k - 1))
        bars = remaining(k, step, k - 1, before, step)
        low, high = (factor * np.abs(before) for factor in _TRUSTED[self.gen.domain.dim])
        if ((np.abs(step) < low) | (np.abs(step) > high)).any():
            beyond = measure(*self.of_degree(k + 2)) - here - step
            bars = np.maximum(remaining(k, step, k, step, beyond), np.abs(step + beyond))
        return bars

    def _rough(self, measure: Measure, here: Array) -> Array:
        """Three times the range of the answers of three other degrees: where D, β or data jump, J converges slowly.

        And not monotonically, as each degree has its own quadrature.  In one dimension half the mesh size is asked as
        well, and counts twice.  Measured on 60 jumps of D at random places of an interval: the bar is 1 to 30 times
        the error, 3 in the median; on a square from 0.7.
        """
        k, gen = self.gen.degree, self.gen
        others = [measure(*self.of_degree(degree)) for degree in (k - 1, k + 1, k + 2) if degree > 0]
        bars = 3.0 * np.max([np.abs(other - here) for other in others], axis=0)
        if gen.domain.dim == 1:
            try:
                bars = np.maximum(bars, 2.0 * np.abs(measure(_halved(gen), self.ask(_halved(gen))) - here))
            except ValueError:  # functions that users gave on this mesh do not exist on another
                logger.info("where D jumps, functions given on the mesh itself leave its half out of the error bar")
        return np.asarray(bars)
