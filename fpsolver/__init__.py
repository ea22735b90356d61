"""What stochastic gradient descent does on a loss landscape, from its Fokker-Planck equation and the dual.

A process on a domain with named absorbing parts is a ``Generator``; every question is one verb, the generator first and
everything optional by keyword.  ``start=`` gives an answer's error bar there, ``rtol=`` refines until it is met.

Where it lives
    Domain                  meshes with named boundary parts
What moves
    SGD, MomentumSGD        stochastic gradient descent by its diffusion: loss, noise, learning rate, batch size
    Nesterov, RMSprop, Adam, ClippedSGD, SignSGD      other algorithms, for ``Chain`` and ``simulate``
    Langevin, UnderdampedLangevin                     Brownian dynamics; with velocities, friction and mass
    SDE                     any drift and diffusion, degenerate or not, of x or of x and t
    Noisy                   a process with a little isotropic noise added
    Isotropic, Covariance, PerSample, LabelNoise      gradient noises, which add; ``batched``, ``Network``, ``Slice``
    Noise, Process          the bases of one's own (docs/extending.md); ``Coefficients``
    Generator               process + domain + absorbing parts, assembled once: the diffusion
    Chain                   the algorithm itself, by its transition operator: every verb takes it like a generator
First phase: how a law moves
    evolve                  density p(t) (Fokker-Planck, forward Kolmogorov); ``resume`` from a checkpoint
    backward                E[g(X_t)] from everywhere (backward Kolmogorov, observables, Koopman)
    gaussian, dirac         initial laws; ``count_steps`` under a schedule of learning rates
Escape: when and where it leaves
    mean_exit_time          mean first-passage time (MFPT), escape time, Kramers time
    exit_time_moments       its moments; ``survival``: P(exit after t)
    exit_probability        splitting probability, hitting probability, gambler's ruin
    exit_distribution       through which part and where on it (harmonic measure); occupation density, Green's function
    feynman_kac             any expectation over exit paths with costs and killing
    quasi_stationary        law before the exit, its rate: Kramers rate, Yaglom limit, principal eigenvalue
Between regions: transitions
    committor               probability of reaching B before A; reaction coordinate (transition path theory)
    first_passage           mean first-passage times between regions
    transition_rate         reaction rate, capacity, rate constants
Long time
    stationary              invariant density, steady state, Gibbs measure where there is one
    ergodic_laws            all invariant laws of a degenerate process, and who ends in which
    spectrum                slow modes and timescales, relaxation, mixing, metastability
    vanishing_noise_limit   what remains as added noise is taken away; ``wasserstein`` distances
Paths
    simulate                paths of the diffusion or of the algorithm itself; ``compare`` with the equation
Theory, pictures, files
    diagnostics             concentration, entropy, bounds, Eyring-Kramers formula, landscapes
    plot, io, landscapes    pictures; ParaView, files; losses to try
"""

from . import _jit, diagnostics, io, landscapes, plot
from . import _petsc as _petsc  # first: PETSc reads the command line when it is initialised
from ._errors import NotConverged, end_all_ranks
from ._log import set_log_level
from .chain import Chain
from .discretisation.boundary import FicheraClasses
from .discretisation.generator import Generator
from .discretisation.positivity import make_nonnegative
from .discretisation.solution import Level, Solution
from .domains.domain import Domain
from .evolution.evolution import Evolution
from .evolution.evolve import backward, evolve, resume
from .evolution.initial import Dirac, Gaussian, dirac, gaussian
from .evolution.law import Law, Measured
from .evolution.schedule import count_steps
from .exits.exit import ExitTimeMoments, exit_probability, exit_time_moments, feynman_kac, mean_exit_time
from .exits.exit_law import ExitDensity, ExitDistribution, exit_distribution
from .exits.regions import FirstPassage, committor, first_passage
from .exits.survival import Survival, survival
from .exits.transition import TransitionRate, transition_rate
from .longtime.ergodic import ErgodicLaws, ergodic_laws
from .longtime.noisy import VanishingNoiseLimit, vanishing_noise_limit, wasserstein
from .longtime.quasi_stationary import QuasiStationary, quasi_stationary
from .longtime.spectrum import Spectrum, spectrum
from .longtime.stationary import stationary
from .models.fields import batched
from .models.langevin import Langevin, Noisy, UnderdampedLangevin
from .models.network import Network
from .models.noise import Covariance, Isotropic, LabelNoise, Noise, PerSample
from .models.optimisers import SGD, Adam, ClippedSGD, MomentumSGD, Nesterov, RMSprop, SignSGD
from .models.process import SDE, Coefficients, Process
from .models.slices import Slice
from .montecarlo.compare import Comparison, compare
from .montecarlo.ensemble import Ensemble, Estimate
from .montecarlo.simulate import simulate

__version__ = "0.1.0"

_jit.install()
end_all_ranks()

# by question, as in the text above
__all__ = ["Chain", "Coefficients", "Domain", "FicheraClasses", "Generator", "Noise", "Process"]
__all__ += ["SDE", "SGD", "Adam", "ClippedSGD", "Langevin", "MomentumSGD", "Nesterov", "Noisy", "RMSprop", "SignSGD"]
__all__ += ["UnderdampedLangevin"]
__all__ += ["Covariance", "Isotropic", "LabelNoise", "Network", "PerSample", "Slice", "batched"]
__all__ += ["Dirac", "Evolution", "Gaussian", "backward", "count_steps", "dirac", "evolve", "gaussian", "resume"]
__all__ += ["exit_distribution", "exit_probability", "exit_time_moments", "feynman_kac", "mean_exit_time", "survival"]
__all__ += ["ExitDensity", "ExitDistribution", "ExitTimeMoments", "QuasiStationary", "Survival", "quasi_stationary"]
__all__ += ["FirstPassage", "TransitionRate", "committor", "first_passage", "transition_rate"]
__all__ += ["ergodic_laws", "spectrum", "stationary", "vanishing_noise_limit", "wasserstein"]
__all__ += ["ErgodicLaws", "Law", "Measured", "Spectrum", "VanishingNoiseLimit", "make_nonnegative"]
__all__ += ["Comparison", "Ensemble", "Estimate", "compare", "simulate"]
__all__ += ["Level", "NotConverged", "Solution", "diagnostics", "io", "landscapes", "plot", "set_log_level"]
