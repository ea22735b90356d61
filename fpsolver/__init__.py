"""What stochastic gradient descent does on a loss landscape, from its Fokker-Planck equation and the dual."""

from . import _jit, diagnostics, io, landscapes, plot
from . import _petsc as _petsc  # first: PETSc reads the command line when it is initialised
from ._errors import NotConverged, end_all_ranks
from ._log import set_log_level
from .discretisation.generator import Generator
from .discretisation.positivity import make_nonnegative
from .discretisation.solution import Level, Solution
from .domains.domain import Domain
from .evolution.evolution import Evolution
from .evolution.evolve import backward, evolve, resume
from .evolution.initial import dirac, gaussian
from .evolution.schedule import count_steps
from .exits.exit import ExitTimeMoments, exit_probability, exit_time_moments, feynman_kac, mean_exit_time
from .exits.exit_law import exit_distribution, survival
from .exits.regions import committor, first_passage, transition_rate
from .longtime.ergodic import ergodic_laws
from .longtime.noisy import VanishingNoiseLimit, vanishing_noise_limit, wasserstein
from .longtime.spectrum import quasi_stationary, spectrum
from .longtime.stationary import stationary
from .models.fields import batched
from .models.network import Network
from .models.noise import Covariance, Isotropic, LabelNoise, PerSample
from .models.noisy import Noisy
from .models.process import SDE, SGD, Langevin, MomentumSGD
from .models.slices import Slice
from .montecarlo.compare import Comparison, compare
from .montecarlo.ensemble import Ensemble
from .montecarlo.simulate import simulate

__version__ = "0.1.0"

_jit.install()
end_all_ranks()

__all__ = [
    "SDE",
    "SGD",
    "Comparison",
    "Covariance",
    "Domain",
    "Ensemble",
    "Evolution",
    "ExitTimeMoments",
    "Generator",
    "Isotropic",
    "LabelNoise",
    "Langevin",
    "Level",
    "MomentumSGD",
    "Network",
    "Noisy",
    "NotConverged",
    "PerSample",
    "Slice",
    "Solution",
    "VanishingNoiseLimit",
    "backward",
    "batched",
    "committor",
    "compare",
    "count_steps",
    "diagnostics",
    "dirac",
    "ergodic_laws",
    "evolve",
    "exit_distribution",
    "exit_probability",
    "exit_time_moments",
    "feynman_kac",
    "first_passage",
    "gaussian",
    "io",
    "landscapes",
    "make_nonnegative",
    "mean_exit_time",
    "plot",
    "quasi_stationary",
    "resume",
    "set_log_level",
    "simulate",
    "spectrum",
    "stationary",
    "survival",
    "transition_rate",
    "vanishing_noise_limit",
    "wasserstein",
]
