"""Numbers of a process that change on the way: learning-rate and batch-size schedules, annealed temperatures.

Time stays what it is for the process.  For SGD t = Σ ηₖ, one step advances it by the learning rate of that moment, so
that −∇f is never scaled and a schedule changes D = η(t)/(2B(t)) Σ alone; :func:`steps` counts the steps.  In the time
s = k η₀ of Li, Tai, E (2017), where ηₖ = η₀ u(s), this is dX = −u ∇f ds + u (η₀ Σ)^{1/2} dW with dt = u ds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from scipy.integrate import quad

from .._arguments import check_positive, expect
from .._errors import together
from ..chain import Chain
from ..discretisation.generator import Generator
from ..models.fields import is_number

Value: TypeAlias = float | Callable[[float], float]
"""A number, or a smooth function of time."""


@dataclass(frozen=True)
class Piece:
    """The scheduled numbers between two times; functions of time are evaluated in there only."""

    begin: float
    end: float
    values: Mapping[str, Value]

    @property
    def constant(self) -> bool:
        """Whether no number changes."""
        return not any(callable(v) for v in self.values.values())

    def at(self, t: float) -> dict[str, float]:
        """The numbers at time t."""
        return {name: _number(name, v(t), t) if callable(v) else v for name, v in self.values.items()}


def pieces(gen: Generator | Chain, schedule: Mapping[str, Any]) -> list[Piece]:
    """The pieces of a schedule, the last one without end; what cannot be scheduled is refused."""
    wanted = "a dictionary such as {'learning_rate': [(0, 0.4), (10, 0.1)]}"
    expect("schedule", schedule, wanted, isinstance(schedule, Mapping) and schedule)
    if isinstance(gen, Generator) and not gen.weak.scheme.unknown_is_density:
        raise ValueError("schedule: the weighted scheme's unknown depends on the numbers; use 'galerkin' or 'dg'.")
    for name in schedule:
        if name in gen.process.scaling:
            raise ValueError(
                f"schedule: {name!r} of {type(gen.process).__name__} scales its velocities and its time, which would "
                "jump with it; schedule the batch size or the momentum, or evolve piece by piece."
            )
    columns = {name: _column(name, value) for name, value in schedule.items()}
    for name, column in columns.items():
        if isinstance(gen, Chain) and any(callable(v) for _, v in column):
            raise ValueError(
                f"schedule of {name}: a chain takes constant pieces, pairs (begin, number), one transition matrix "
                "each; it got a function of time. Give its values on pieces."
            )
    begins = sorted({begin for column in columns.values() for begin, _ in column})
    found = []
    for begin, end in zip(begins, [*begins[1:], np.inf], strict=True):
        values = {name: [v for b, v in column if b <= begin][-1] for name, column in columns.items()}
        found.append(Piece(begin, end, values))
        with together(gen.domain.comm):
            gen.process.with_parameters(**found[-1].at(begin))
    return found


def followed(schedule: Mapping[str, Any]) -> dict[str, Callable[[float], float]]:
    """Each number of a schedule as a function of time."""

    def at(name: str, column: list[tuple[float, Value]], t: float) -> float:
        value = [v for begin, v in column if begin <= t][-1]
        return _number(name, value(t) if callable(value) else value, t)

    return {name: partial(at, name, _column(name, value)) for name, value in schedule.items()}


def _column(name: str, value: Any) -> list[tuple[float, Value]]:
    """One number's schedule as pairs (begin, number or function)."""
    if callable(value) or is_number(value):
        value = [(0.0, value)]
    try:
        column = [(float(begin), v if callable(v) else _number(name, v, float(begin))) for begin, v in value]
    except (TypeError, ValueError) as error:
        wanted = "a number, a function of time, or pairs (begin, number or function)"
        raise ValueError(f"schedule of {name}: {value!r}; expected {wanted}. {error}") from None
    begins = [begin for begin, _ in column]
    good = begins and begins[0] == 0 and (np.diff(begins) > 0).all() and np.isfinite(begins).all()
    expect(f"schedule of {name}: the list of its times", begins, "an increasing one that begins with 0", good)
    return column


def _number(name: str, value: Any, t: float) -> float:
    good = is_number(value) and np.isfinite(value)
    expect(f"schedule of {name}: its value at t = {t:g}", value, "a finite number", good)
    return float(value)


def count_steps(learning_rate: Any, times: Any) -> np.ndarray:
    """Number of steps of the algorithm up to each time, ∫₀ᵗ ds/η(s), for SGD whose time is t = Σ ηₖ; shape (n,).

    The learning rate η is a number, a function of time, or pairs (begin, number or function).  Not rounded.

    Raises:
        ValueError: a learning rate that is not positive.
    """
    begins = [begin for begin, _ in _column("learning_rate", learning_rate)]
    rate = followed({"learning_rate": learning_rate})["learning_rate"]

    def inverse(t: float) -> float:
        return 1.0 / check_positive(f"schedule of learning_rate: its value at t = {t:g}", rate(t))

    def count(t: float) -> float:
        stretches = pairwise([*(begin for begin in begins if begin < t), t])
        return sum(quad(inverse, a, b, epsabs=0, epsrel=1e-12, limit=200)[0] for a, b in stretches)

    return np.array([count(float(t)) for t in np.atleast_1d(np.asarray(times, float))])
