"""What answers tell: bounds, asymptotics and conditions of theorems, evaluated on the mesh."""

from .bounds import Bound, ExitBounds, exit_bounds
from .critical import CriticalPoint, critical_points
from .decay import LossDecay, loss_decay
from .kramers import EyringKramers, eyring_kramers
from .landscape import LandscapeReport, landscape
from .lojasiewicz import Exponent, lojasiewicz
from .star import StarConvexity, star_convexity

__all__ = [
    "Bound",
    "CriticalPoint",
    "ExitBounds",
    "Exponent",
    "EyringKramers",
    "LandscapeReport",
    "LossDecay",
    "StarConvexity",
    "critical_points",
    "exit_bounds",
    "eyring_kramers",
    "landscape",
    "lojasiewicz",
    "loss_decay",
    "star_convexity",
]
