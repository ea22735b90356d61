"""What answers have in common: numbers with their error bars, in a terminal and in a notebook."""

from html import escape
from typing import Any

import numpy as np

DOUBTFUL = 0.1  # of the answer: error bars above it are warned about


class Answer:
    """Base of results, whose text leads with the answer; a notebook shows its first line in bold."""

    def _repr_html_(self) -> str:
        first, _, rest = str(self).partition("\n")
        style = "color:#b00020" if WARNING in first else ""
        return f'<div><b style="{style}">{escape(first)}</b><pre style="font-size:85%">{escape(rest)}</pre></div>'


WARNING = "WARNING"


def with_bar(value: float, error: float | None = None) -> str:
    """``12.346 ± 0.012``: a number with as many digits as its error bar leaves."""
    if error is None:
        return f"{value:.8g}"
    if not np.isfinite([value, error]).all() or error <= 0 or value == 0:
        return f"{value:.8g} ± {error:.2g}"
    digits = np.floor(np.log10(abs(value))) - np.floor(np.log10(error)) + 2
    return f"{value:.{int(np.clip(digits, 1, 15))}g} ± {error:.2g}"


def place(point: Any, digits: int = 6) -> str:
    """``(0.1, -2)``: a point."""
    return "(" + ", ".join(f"{c:.{digits}g}" for c in point) + ")"


def doubt(value: float, error: float | None) -> str:
    """What the first line says where an error bar exceeds a tenth of the answer, else nothing."""
    if error is None or error <= DOUBTFUL * abs(value):
        return ""
    share = f"{100 * error / abs(value):.0f} %" if value else "more than all"
    return f"  {WARNING}: the error bar is {share} of the answer; refine the mesh, or ask with rtol="


def figures(stats: Any) -> str:
    """``unknowns=120, residual=1e-12``."""
    return ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in stats.items())


def steps_of(process: Any, power: int = 1) -> float | None:
    """What a time to this power is divided by to count steps of an algorithm; None for other processes."""
    unit = getattr(process, "time_per_step", None)
    return None if unit is None else float(unit) ** power


def need_steps(unit: float | None, name: str) -> float:
    """The same where there are steps to count, else an error."""
    if unit is None:
        expected = "a time, rate or moment of fp.SGD or fp.MomentumSGD was expected"
        raise ValueError(f"in_steps: {name} is no time of an algorithm; {expected}.")
    return unit
