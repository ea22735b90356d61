"""What answers tell: bounds, asymptotics and conditions of theorems, evaluated on the mesh."""

from .bounds import Bound, ExitBounds, exit_bounds
from .critical import CriticalPoint, critical_points
from .kramers import EyringKramers, eyring_kramers

__all__ = ["Bound", "CriticalPoint", "ExitBounds", "EyringKramers", "critical_points", "exit_bounds", "eyring_kramers"]
