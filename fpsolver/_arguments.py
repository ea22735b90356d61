"""Checks of arguments, in one dialect: "what is value; something else was expected."."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """Whether ``value`` is a plain real number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_share(what: str, value: Any) -> float:
    """A number between 0 and 1, such as a relative tolerance."""
    if not is_number(value) or not 0 < value < 1:
        raise ValueError(f"{what} is {value!r}; a number between 0 and 1 was expected.")
    return float(value)


def check_positive(what: str, value: Any) -> float:
    """A positive finite number."""
    if not is_number(value) or not 0 < value < np.inf:
        raise ValueError(f"{what} is {value!r}; a positive number was expected.")
    return float(value)


def check_integer(what: str, value: Any, least: int = 1, most: float = np.inf) -> int:
    """An integer in a range; floats that are whole numbers are."""
    if not is_number(value) or not least <= value <= most or int(value) != value:
        limits = f"of at least {least}" if most == np.inf else f"between {least} and {most}"
        raise ValueError(f"{what} is {value!r}; an integer {limits} was expected.")
    return int(value)


def check_choice(what: str, value: Any, choices: Sequence[str]) -> None:
    """One of some names."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{what} is {value!r}; one of {', '.join(map(repr, choices))} was expected.")
