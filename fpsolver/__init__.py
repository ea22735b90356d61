"""What stochastic gradient descent does on a loss landscape, from its Fokker-Planck equation and the dual."""

from . import _petsc as _petsc  # first: PETSc reads the command line when it is initialised
from . import diagnostics, io, landscapes, plot
from ._errors import NotConverged
from ._log import set_log_level
from .domain import Domain
from .ergodic import ergodic_laws
from .evolution import Evolution, backward, evolve
from .exit import exit_distribution, exit_probability, exit_time_moments, feynman_kac, mean_exit_time, survival
from .fields import batched
from .generator import Generator
from .initial import dirac, gaussian
from .monotone import evolve_monotone
from .noise import Covariance, Isotropic, PerSample
from .positivity import limit
from .process import SDE, SGD, Langevin, MomentumSGD
from .solution import Solution
from .spectrum import quasi_stationary, spectrum
from .stationary import stationary

__version__ = "0.1.0"

__all__ = [
    "SDE",
    "SGD",
    "Covariance",
    "Domain",
    "Evolution",
    "Generator",
    "Isotropic",
    "Langevin",
    "MomentumSGD",
    "NotConverged",
    "PerSample",
    "Solution",
    "backward",
    "batched",
    "diagnostics",
    "dirac",
    "ergodic_laws",
    "evolve",
    "evolve_monotone",
    "exit_distribution",
    "exit_probability",
    "exit_time_moments",
    "feynman_kac",
    "gaussian",
    "io",
    "landscapes",
    "limit",
    "mean_exit_time",
    "plot",
    "quasi_stationary",
    "set_log_level",
    "spectrum",
    "stationary",
    "survival",
]
