"""What answers tell: bounds, asymptotics and conditions of theorems, evaluated on the mesh."""

from .concentration.concentration import Concentration, concentration, concentration_backward
from .concentration.contraction import Collapse, Contraction, collapse, contraction
from .concentration.regime import LossDecay, loss_decay, regime_indicator, shadowing_time
from .entropy.entropy import EntropyDecay, entropy_balance, entropy_decay, fisher_information, relative_entropy
from .entropy.invariant import Tightness, Truncation, tightness, truncation
from .entropy.rates import ArnoldErb, BakryEmery, arnold_erb_matrix, bakry_emery, spectral_gap
from .exits.bounds import Bound, ExitBounds, exit_bounds
from .exits.kramers import EyringKramers, eyring_kramers
from .exits.validity import Validity, validity
from .landscape.critical import CriticalPoint, critical_points
from .landscape.lojasiewicz import Exponent, lojasiewicz
from .landscape.report import LandscapeReport, landscape
from .landscape.star import StarConvexity, StarConvexPath, star_convex_path, star_convexity

__all__ = ["Collapse", "Concentration", "Contraction", "collapse", "concentration", "concentration_backward"]
__all__ += ["LossDecay", "contraction", "loss_decay", "regime_indicator", "shadowing_time"]
__all__ += ["Bound", "ExitBounds", "EyringKramers", "Validity", "exit_bounds", "eyring_kramers", "validity"]
__all__ += ["EntropyDecay", "entropy_balance", "entropy_decay", "fisher_information", "relative_entropy"]
__all__ += ["ArnoldErb", "BakryEmery", "arnold_erb_matrix", "bakry_emery", "spectral_gap"]
__all__ += ["Tightness", "Truncation", "tightness", "truncation"]
__all__ += ["CriticalPoint", "Exponent", "LandscapeReport", "critical_points", "landscape", "lojasiewicz"]
__all__ += ["StarConvexPath", "StarConvexity", "star_convex_path", "star_convexity"]
