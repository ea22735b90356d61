"""What answers tell: bounds, asymptotics and conditions of theorems, evaluated on the mesh."""

from .bounds import Bound, ExitBounds, exit_bounds
from .concentration import Concentration, concentration, concentration_backward
from .contraction import Collapse, Contraction, collapse, contraction
from .critical import CriticalPoint, critical_points
from .decay import LossDecay, loss_decay
from .entropy import EntropyDecay, entropy_balance, entropy_decay, fisher_information, relative_entropy
from .entropy_rates import ArnoldErb, BakryEmery, arnold_erb_matrix, bakry_emery, spectral_gap
from .invariant import Tightness, tightness
from .kramers import EyringKramers, eyring_kramers
from .landscape import LandscapeReport, landscape
from .lojasiewicz import Exponent, lojasiewicz
from .regime import regime_indicator, shadowing_time
from .star import StarConvexity, star_convexity
from .truncation import Truncation, truncation

__all__ = [
    "ArnoldErb",
    "BakryEmery",
    "Bound",
    "Collapse",
    "Concentration",
    "Contraction",
    "CriticalPoint",
    "EntropyDecay",
    "ExitBounds",
    "Exponent",
    "EyringKramers",
    "LandscapeReport",
    "LossDecay",
    "StarConvexity",
    "Tightness",
    "Truncation",
    "arnold_erb_matrix",
    "bakry_emery",
    "collapse",
    "concentration",
    "concentration_backward",
    "contraction",
    "critical_points",
    "entropy_balance",
    "entropy_decay",
    "exit_bounds",
    "eyring_kramers",
    "fisher_information",
    "landscape",
    "lojasiewicz",
    "loss_decay",
    "regime_indicator",
    "relative_entropy",
    "shadowing_time",
    "spectral_gap",
    "star_convexity",
    "tightness",
    "truncation",
]
