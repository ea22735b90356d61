"""What stochastic gradient descent does on a loss landscape, from its Fokker-Planck equation and the dual."""

from . import _petsc as _petsc  # first: PETSc reads the command line when it is initialised
from . import diagnostics, io, landscapes, plot
from ._ensemble import Ensemble
from ._errors import NotConverged
from ._log import set_log_level
from .adapt import Adapted, solve_to
from .compare import Comparison, compare
from .domain import Domain
from .ergodic import ergodic_laws
from .evolution import Evolution, backward, evolve, resume
from .exit import exit_probability, exit_time_moments, feynman_kac, mean_exit_time
from .exit_law import exit_distribution, survival
from .fields import batched
from .generator import Generator
from .initial import dirac, gaussian
from .monotone import evolve_monotone
from .montecarlo import simulate
from .network import Network
from .noise import Covariance, Isotropic, LabelNoise, PerSample
from .noisy import NoisyLimit, noisy_limit, wasserstein
from .positivity import limit
from .process import SDE, SGD, Langevin, MomentumSGD, Noisy
from .regions import committor, first_passage, transition_rate
from .schedule import steps
from .slices import Slice
from .solution import Solution
from .spectrum import quasi_stationary, spectrum
from .stationary import stationary

__version__ = "0.1.0"

__all__ = [
    "SDE",
    "SGD",
    "Adapted",
    "Comparison",
    "Covariance",
    "Domain",
    "Ensemble",
    "Evolution",
    "Generator",
    "Isotropic",
    "LabelNoise",
    "Langevin",
    "MomentumSGD",
    "Network",
    "Noisy",
    "NoisyLimit",
    "NotConverged",
    "PerSample",
    "Slice",
    "Solution",
    "backward",
    "batched",
    "committor",
    "compare",
    "diagnostics",
    "dirac",
    "ergodic_laws",
    "evolve",
    "evolve_monotone",
    "exit_distribution",
    "exit_probability",
    "exit_time_moments",
    "feynman_kac",
    "first_passage",
    "gaussian",
    "io",
    "landscapes",
    "limit",
    "mean_exit_time",
    "noisy_limit",
    "plot",
    "quasi_stationary",
    "resume",
    "set_log_level",
    "simulate",
    "solve_to",
    "spectrum",
    "stationary",
    "steps",
    "survival",
    "transition_rate",
    "wasserstein",
]
