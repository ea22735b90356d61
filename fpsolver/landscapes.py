"""Documented test landscapes: losses with their minima and saddles, in UFL and numpy alike.

Each is a :class:`Landscape`, callable as a loss: ``fp.Langevin(fp.landscapes.double_well, 0.05)``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ufl

Point = tuple[float, ...]


@dataclass(frozen=True)
class Landscape:
    """A loss f(x) with its critical points: local minima, the deepest first, and saddles of index one, lowest first."""

    function: Callable[[Any], Any]
    dim: int
    minima: tuple[Point, ...]
    saddles: tuple[Point, ...]
    source: str

    def __call__(self, x: Any) -> Any:
        """f(x)."""
        return self.function(x)


def _exp(a: Any) -> Any:
    return ufl.exp(a) if isinstance(a, ufl.core.expr.Expr) else np.exp(a)


def _well(x: Any) -> Any:
    return (x[0] ** 2 - 1) ** 2 / 4


double_well = Landscape(_well, 1, ((-1.0,), (1.0,)), ((0.0,),), "quartic well, barrier 1/4")

double_well_2d = Landscape(
    lambda x: _well(x) + x[1] ** 2 / 2, 2, ((-1.0, 0.0), (1.0, 0.0)), ((0.0, 0.0),), "and a quadratic direction"
)

_LEFT, _TOP, _RIGHT = -1.0466805318046, 0.101031257881011, 0.945649273923591

tilted_well = Landscape(
    lambda x: _well(x) + x[0] / 10, 1, ((_LEFT,), (_RIGHT,)), ((_TOP,),),
    "quartic well tilted by x/10: barriers 0.357411589373857 (left) and 0.157664957347606 (right)",
)  # fmt: skip

tilted_well_2d = Landscape(
    lambda x: _well(x) + x[0] / 10 + x[1] ** 2 / 2, 2, ((_LEFT, 0.0), (_RIGHT, 0.0)), ((_TOP, 0.0),),
    "tilted quartic well plus a quadratic direction",
)  # fmt: skip

curved_well = Landscape(
    lambda x: _well(x) + (x[1] - (x[0] ** 2 - 1) / 2) ** 2 / 2, 2, ((-1.0, 0.0), (1.0, 0.0)), ((0.0, -0.5),),
    "quartic well along a parabola, barrier 1/4",
)  # fmt: skip

# A, a, b, c, X, Y of A exp(a (x − X)² + b (x − X)(y − Y) + c (y − Y)²)
_MULLER_BROWN = (
    (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
    (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
    (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
    (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
)


def _muller_brown(x: Any) -> Any:
    return sum(
        A * _exp(a * (x[0] - X) ** 2 + b * (x[0] - X) * (x[1] - Y) + c * (x[1] - Y) ** 2)
        for A, a, b, c, X, Y in _MULLER_BROWN
    )


muller_brown = Landscape(
    _muller_brown, 2,
    ((-0.558223634633, 1.441725841805), (0.623499404931, 0.028037758529), (-0.050010822998, 0.466694104872)),
    ((0.212486582001, 0.292988325107), (-0.822001558733, 0.624312802815)),
    "Müller, Brown, Theor. Chim. Acta 53 (1979); minima -146.69951721, -108.16672412, -80.76781813",
)  # fmt: skip


_HOLES = ((3, 0, 1 / 3), (-3, 0, 5 / 3), (-5, 1, 0), (-5, -1, 0))
three_hole = Landscape(
    lambda x: 0.2 * x[0] ** 4 + 0.2 * (x[1] - 1 / 3) ** 4
    + sum(A * _exp(-((x[0] - X) ** 2) - (x[1] - Y) ** 2) for A, X, Y in _HOLES), 2,
    ((-1.048054992824, -0.0420936663067), (1.048054992824, -0.0420936663067), (0.0, 1.537082004449)),
    ((-0.6172723078765, 1.102734517508), (0.6172723078765, 1.102734517508), (0.0, -0.3158265504781)),
    "Metzner, Schütte, Vanden-Eijnden, J. Chem. Phys. 125, 084110 (2006)",
)  # fmt: skip
