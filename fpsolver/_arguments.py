"""Checks of arguments, in one dialect: "NAME is VALUE; SOMETHING ELSE was expected."."""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """Whether ``value`` is a plain real number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def expect(what: str, value: Any, wanted: str, holds: Any) -> None:
    """Raise unless a condition holds of a value."""
    if not holds:
        raise ValueError(f"{what} is {value!r}; {wanted} was expected.")


def check_share(what: str, value: Any) -> float:
    """A number between 0 and 1, such as a relative tolerance."""
    expect(what, value, "a number between 0 and 1", is_number(value) and 0 < value < 1)
    return float(value)


def check_positive(what: str, value: Any) -> float:
    """A positive finite number."""
    expect(what, value, "a positive number", is_number(value) and 0 < value < np.inf)
    return float(value)


def check_integer(what: str, value: Any, least: int = 1, most: float = np.inf) -> int:
    """An integer in a range; floats that are whole numbers are."""
    wanted = f"an integer of at least {least}" if most == np.inf else f"an integer between {least} and {most}"
    expect(what, value, wanted, is_number(value) and least <= value <= most and int(value) == value)
    return int(value)


def check_choice(what: str, value: Any, choices: Sequence[str]) -> None:
    """One of some names."""
    known = isinstance(value, str) and value in choices
    expect(what, value, f"one of {', '.join(map(repr, choices))}", known)


def check_numbers(what: str, values: Any, n: int) -> list[float]:
    """n finite numbers."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.zeros(())
    good = found.shape == (n,) and np.isfinite(found).all()
    expect(what, values, f"a sequence of {n} finite number{'s' * (n > 1)}", good)
    return [float(v) for v in found]


def part_names(absorbing: Any) -> tuple[str, ...]:
    """Names of absorbing parts, each once."""
    if not isinstance(absorbing, Iterable):
        raise TypeError(f"absorbing is {absorbing!r}; names of boundary parts were expected, as in ['left'], or [].")
    return tuple(dict.fromkeys([absorbing] if isinstance(absorbing, str) else absorbing))


def need_still(gen: Any, what: str) -> None:
    """Refuse a process that depends on the time, of a question about one that does not."""
    if getattr(gen.process, "timed", False):
        raise ValueError(
            f"{what}: the process depends on the time t, and this is a question about one that does not. Ask fp.evolve "
            "or fp.backward (with payoff 1: the survival), or stop the time: gen.replace(t=0.0)."
        )
