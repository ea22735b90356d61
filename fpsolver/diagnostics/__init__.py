"""What answers tell: bounds, asymptotics and conditions of theorems, evaluated on the mesh."""

from .invariant import Tightness, tightness
from .truncation import Truncation, truncation

__all__ = ["Tightness", "Truncation", "tightness", "truncation"]
