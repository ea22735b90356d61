"""What answers tell: bounds, asymptotics and conditions of theorems, evaluated on the mesh."""

from .concentration import Concentration, concentration, concentration_backward
from .entropy import EntropyDecay, entropy_balance, entropy_decay, fisher_information, relative_entropy
from .entropy_rates import ArnoldErb, BakryEmery, arnold_erb_matrix, bakry_emery, spectral_gap
from .regime import Collapse, Contraction, collapse, contraction, regime_indicator, shadowing_time

__all__ = [
    "ArnoldErb",
    "BakryEmery",
    "Collapse",
    "Concentration",
    "Contraction",
    "EntropyDecay",
    "arnold_erb_matrix",
    "bakry_emery",
    "collapse",
    "concentration",
    "concentration_backward",
    "contraction",
    "entropy_balance",
    "entropy_decay",
    "fisher_information",
    "regime_indicator",
    "relative_entropy",
    "shadowing_time",
    "spectral_gap",
]
