"""How long a process stays: survival probabilities."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arguments import need_still
from .._errors import NotConverged
from .._log import logger
from .._petsc import Options
from ..chain import Chain
from ..chain.refinement import MAX_UNKNOWNS, Numbers, to_accuracy
from ..discretisation.assembly import to_function, to_vector
from ..discretisation.generator import Generator
from ..discretisation.metastable import UNRESOLVED, slowest_mode
from ..discretisation.solution import Level, as_points, evaluate
from ..evolution.evolution import Evolution
from ..evolution.evolve import backward, check_times, evolve, stricter
from ..evolution.initial import is_density, load_density
from ._guards import need_exit


class Survival(np.ndarray):
    """P(τ > t) as an array, with error bars.

    Attributes:
        times: shape (times,).
        error: error bars of mesh and time, of the shape of the array (collective when first asked for).
        history: the meshes of an answer to a prescribed accuracy, the coarsest first.
    """

    times: np.ndarray
    history: tuple[Level, ...] = ()
    _numbers: "_Curve | None" = None

    @property
    def error(self) -> np.ndarray:
        """Error bars."""
        if self._numbers is None:
            raise AttributeError("error: these numbers were made from those of fp.survival; ask the answer itself.")
        return self._numbers.bars.reshape(self.shape)


@dataclass(frozen=True)
class _Curve(Numbers):
    """Survival probabilities, shape (times,) or (points, times)."""

    values: np.ndarray

    def numbers(self) -> np.ndarray:
        return self.values.ravel()

    def accuracy(self) -> tuple[float, float]:
        return 1.0, float(self.bars.max())


def survival(
    gen: Generator | Chain,
    start: Any,
    times: Any,
    *,
    time_rtol: float = 1e-6,
    options: Options | None = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
) -> Survival:
    """P(τ > t) at the given times, shape (times,), or (points, times) for several starting points (collective).

    Points are served by one backward evolution of the constant 1, whatever their number; an initial density by one
    forward evolution.  The array's ``.error`` are error bars; with ``rtol`` all cells are refined until none is above
    it.  ``time_rtol`` and ``options`` as in :func:`~fpsolver.evolve`.

    Raises:
        ValueError: nothing absorbs, the start is outside or has not mass one, times that are not increasing.
    """
    need_still(gen, "survival")
    need_exit(gen, "survival")
    when = check_times(times)

    def ask(other: Generator | Chain, time_rtol: float = time_rtol) -> _Curve:
        values = _survival(other, start, when, time_rtol, options)
        return _Curve(values, generator=other, ask=lambda finer: ask(finer, stricter(time_rtol)))

    found = to_accuracy("survival", gen, ask, "fp_evolve_", rtol=rtol, max_unknowns=max_unknowns)
    answer = found.values.view(Survival)
    answer.times, answer._numbers, answer.history = when, found, found.history
    return answer


def _survival(
    gen: Generator | Chain, start: Any, times: np.ndarray, time_rtol: float, options: Options | None
) -> np.ndarray:
    if is_density(start):
        load_density(gen, start)
        return _probabilities(evolve(gen, start, times, time_rtol=time_rtol, options=options).mass)
    points = as_points(start, gen.domain.dim, "start")
    flow = backward(gen, 1.0, times, time_rtol=time_rtol, options=options)
    values = np.array([u.at(points) for u in flow]).T
    if isinstance(gen, Generator) and gen.weak.scheme.by_capacities:
        values += _slow_part_missed(gen, flow, points, options)
    return _probabilities(values[0] if len(points) == 1 else values)


def _probabilities(values: np.ndarray) -> np.ndarray:
    """Values between zero and one: what undershoots of the discretisation and the error in time leave of them."""
    beyond = float(np.maximum(-values, values - 1.0).max(initial=0.0))
    if beyond > 1e-2:
        logger.warning(
            "survival: values lie outside [0, 1] by %.2g and were cut off there: the mesh does not resolve the time "
            "near the start or the exit. Refine it there.", beyond
        )  # fmt: skip
    return np.clip(values, 0.0, 1.0)


def _slow_part_missed(gen: Generator, flow: Evolution, points: np.ndarray, options: Options | None) -> np.ndarray:
    """What an evolution of 1 has wrong along the slowest mode φ, shape (points, times) (collective)."""
    # its part φ ∫φ e^{-λt} with λ from capacities: in single long steps of the evolution it has been 20 % off
    try:
        rate, mode, _ = slowest_mode(gen)
    except NotConverged as failure:
        if failure.reason == UNRESOLVED:
            raise
        return np.zeros((len(points), len(flow.times)))  # several modes are as slow
    image = gen.M * mode
    whole, found = image.sum(), [image.dot(to_vector(gen, u.raw)) for u in flow]
    profile = evaluate(to_function(gen, mode), points)
    return np.outer(profile, whole * np.exp(-rate * np.asarray(flow.times)) - np.array(found))
