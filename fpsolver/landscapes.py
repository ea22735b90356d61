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
    """A loss with its critical points.

    Attributes:
        function: f(x), with x[i] the i-th coordinate, UFL or array.
        dim: number of coordinates.
        minima: local minima, the deepest first.
        saddles: saddles of index one, the lowest first.
        source: where it comes from.
    """

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
    lambda x: _well(x) + x[1] ** 2 / 2,
    2,
    ((-1.0, 0.0), (1.0, 0.0)),
    ((0.0, 0.0),),
    "quartic well plus a quadratic direction",
)

tilted_well = Landscape(
    lambda x: _well(x) + x[0] / 10,
    1,
    ((-1.0466805318046,), (0.945649273923591,)),
    ((0.101031257881011,),),
    "quartic well tilted by x/10: barriers 0.357411589373857 (left) and 0.157664957347606 (right)",
)

tilted_well_2d = Landscape(
    lambda x: _well(x) + x[0] / 10 + x[1] ** 2 / 2,
    2,
    ((-1.0466805318046, 0.0), (0.945649273923591, 0.0)),
    ((0.101031257881011, 0.0),),
    "tilted quartic well plus a quadratic direction",
)

curved_well = Landscape(
    lambda x: _well(x) + (x[1] - (x[0] ** 2 - 1) / 2) ** 2 / 2,
    2,
    ((-1.0, 0.0), (1.0, 0.0)),
    ((0.0, -0.5),),
    "quartic well along a parabola, barrier 1/4",
)

_MB_A = (-200.0, -100.0, -170.0, 15.0)
_MB_a = (-1.0, -1.0, -6.5, 0.7)
_MB_b = (0.0, 0.0, 11.0, 0.6)
_MB_c = (-10.0, -10.0, -6.5, 0.7)
_MB_x = (1.0, 0.0, -0.5, -1.0)
_MB_y = (0.0, 0.5, 1.5, 1.0)


def _muller_brown(x: Any) -> Any:
    terms = zip(_MB_A, _MB_a, _MB_b, _MB_c, _MB_x, _MB_y, strict=True)
    return sum(
        A * _exp(a * (x[0] - X) ** 2 + b * (x[0] - X) * (x[1] - Y) + c * (x[1] - Y) ** 2) for A, a, b, c, X, Y in terms
    )


muller_brown = Landscape(
    _muller_brown,
    2,
    (
        (-0.558223634633, 1.441725841805),
        (0.623499404931, 0.028037758529),
        (-0.050010822998, 0.466694104872),
    ),
    ((0.212486582001, 0.292988325107), (-0.822001558733, 0.624312802815)),
    "Müller, Brown, Theor. Chim. Acta 53 (1979); minima -146.69951721, -108.16672412, -80.76781813",
)


def _three_hole(x: Any) -> Any:
    X, Y = x[0], x[1]
    return (
        3 * _exp(-(X**2) - (Y - 1 / 3) ** 2)
        - 3 * _exp(-(X**2) - (Y - 5 / 3) ** 2)
        - 5 * _exp(-((X - 1) ** 2) - Y**2)
        - 5 * _exp(-((X + 1) ** 2) - Y**2)
        + 0.2 * X**4
        + 0.2 * (Y - 1 / 3) ** 4
    )


three_hole = Landscape(
    _three_hole,
    2,
    ((-1.048054992824, -0.0420936663067), (1.048054992824, -0.0420936663067), (0.0, 1.537082004449)),
    ((-0.6172723078765, 1.102734517508), (0.6172723078765, 1.102734517508), (0.0, -0.3158265504781)),
    "Metzner, Schütte, Vanden-Eijnden, J. Chem. Phys. 125, 084110 (2006)",
)
