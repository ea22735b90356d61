"""Evolution in time: densities forward, expectations of payoffs backward, with one propagator per generator."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from petsc4py import PETSc

import basix
import numpy as np

from .._arguments import check_share, expect
from .._errors import NotConverged
from .._log import logger
from .._petsc import Options
from .._sample import cell_type, total
from ..chain import Chain
from ..chain.refinement import MAX_UNKNOWNS, to_accuracy
from ..discretisation.assembly import to_density, to_function
from ..discretisation.generator import Generator
from ..discretisation.positivity import limiter
from ..discretisation.solver import statistics
from ._expm import LEAST
from ._krylov import Snapshot
from ._scheduled import Equation
from .checkpoint import Checkpoint, describe
from .evolution import Evolution, walk
from .initial import Dirac, Gaussian, coefficients, numbers

MEANS = 2.0  # growth of the integral of |cell means|: transport that is not resolved adds a few per cent
VALUES = 5.0  # of the largest absolute value at a node: a jump that is not resolved adds a fifth
WIDE = 10.0  # ∫p²/w ∫w / (∫p)² = WIDE²: what is wider needs a smaller time_rtol for the same error of the density


def evolve(
    gen: Generator | Chain, initial: Any, times: Any, *, rtol: float | None = None, time_rtol: float = 1e-6,
    max_unknowns: int = MAX_UNKNOWNS, schedule: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None, options: Options | None = None,
) -> Evolution:  # fmt: skip
    """Density p(t) of the process started from ``initial``: ∂ₜp = −∇·J, killed at the absorbing parts (collective).

    The error in time is controlled; masses, means and expectations of ``evolution[i]`` have error bars of mesh and
    time, and its ``.error`` is that of the whole density, ∫ |p − p*|.  With ``rtol`` the mesh is refined where that
    comes from, until it is at most ``rtol`` times the mass at all times.  Mass is conserved to rounding where nothing
    absorbs.  The cost hardly depends on the number of times, and grows with the log of their range.

    Of a chain, the law after the steps until each time, M p' = Pᵀ p, exact in time.  Times are rounded to whole steps.
    Laws of chains may be singular: the densities are projections, while masses and expectations converge.

    Args:
        gen: generator or chain.
        initial: :func:`~fpsolver.gaussian`, :func:`~fpsolver.dirac`, a ``Function``, or a callable of all coordinates.
            Of a signed one nothing is made non-negative.
        times: increasing, non-negative, shape (n,) or one number.
        rtol: of the whole answer, mesh and time; not of chains.
        max_unknowns: with ``rtol``, no mesh with more unknowns is tried.
        time_rtol: error in time, in the L² norm relative to that of p(t), or to 1e-10 times the largest
            norm so far, if errors decay as p does; that of :attr:`~fpsolver.Evolution.outflux` is controlled too.
        options: PETSc options without the prefix ``fp_evolve_``.
        schedule: numbers of the process that change on the way: name -> number, smooth function of t, or pairs
            (begin, number or function), the first at 0: ``{"learning_rate": [(0, 0.4), (10, 0.1)]}``.  For SGD
            t = Σ ηₖ, and :func:`~fpsolver.count_steps` counts steps.  A piece of constant numbers costs one
            factorisation, functions cost one per step; where they jump or bend, begin a new pair.  The time of
            formulas that ask for it, ``lambda x, t: ...``, is on it by itself.
        checkpoint: folder in which the state at every output time is kept.  If it holds some already, the evolution
            goes on from there, on any number of ranks.  Not for chains.

    Raises:
        ValueError: unsuitable times, ``time_rtol``, ``initial`` or ``schedule``; a checkpoint of another evolution;
            with the ``weighted`` scheme, a density much wider than the invariant one.
        NotConverged: ``time_rtol`` could not be met, what leaves is lost in rounding, or the solution grows as no
            density does; ``exception.partial`` is the evolution up to there.
    """
    return _evolved("density", gen, initial, times, rtol, time_rtol, max_unknowns, schedule, checkpoint, options)


def stricter(time_rtol: float) -> float:
    """The tolerance in time of what error bars compare with."""
    return max(time_rtol / 30, LEAST)


def backward(
    gen: Generator | Chain, payoff: Any, times: Any, *, rtol: float | None = None, time_rtol: float = 1e-6,
    max_unknowns: int = MAX_UNKNOWNS, schedule: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None, options: Options | None = None,
) -> Evolution:  # fmt: skip
    """u(t, x) = E[g(X_t); not absorbed until t | X₀ = x]: ∂ₜu = Lu, u(0) = g (collective).

    For ``payoff=1`` it is the probability of surviving until t.  Constants are invariant to rounding where nothing
    absorbs.  The payoff g is a number, a callable of all coordinates, or a ``Function``; all else is as for
    :func:`evolve`.  With a schedule every time needs a run of its own, as the last piece acts on the payoff first.
    """
    return _evolved("expectation", gen, payoff, times, rtol, time_rtol, max_unknowns, schedule, checkpoint, options)


def _evolved(
    name: str, gen: Generator | Chain, data: Any, times: Any, rtol: float | None, time_rtol: float, max_unknowns: int,
    schedule: Mapping[str, Any] | None, checkpoint: Any, options: Options | None,
) -> Evolution:  # fmt: skip
    """The evolution of a density or an expectation."""
    times, density = check_times(times), name == "density"
    if isinstance(gen, Chain):
        return walk(gen, name, data, times, schedule, checkpoint, rtol)
    tol = check_share("time_rtol", time_rtol)
    kept = rtol is None or checkpoint is None
    expect("checkpoint", checkpoint, "None with rtol, for which the mesh changes,", kept)

    def ask(other: Generator, tol: float = tol, whole: bool = True) -> Evolution:
        v0 = coefficients(other, data, "initial density" if density else "payoff", payoff=not density)
        parts, limits = (other.absorbing, limiter(other)) if density else ((), None)
        if limits is not None and not isinstance(data, Gaussian | Dirac):
            mass, positive = limits.masses(limits.means(to_density(other, v0)))
            # of a signed measure, a tenth or more of whose mass in cells is negative, nothing is made non-negative
            limits = None if positive - mass >= 0.1 * positive else limits
        in_norm = _weighted_tol(other, v0, tol) if density and not other.weak.scheme.unknown_is_density else tol
        again = cache(lambda finer: [p.raw for p in ask(finer, stricter(tol), False)]) if whole else None
        evolution = Evolution(name, other, parts, limits, schedule is not None, again=again)
        return _run(evolution, v0, times, in_norm, options, schedule, checkpoint if whole else None)

    verb = "evolve" if density else "backward"
    return to_accuracy(verb, gen, ask, "fp_evolve_", rtol=rtol, max_unknowns=max_unknowns)


def resume(
    gen: Generator,
    checkpoint: str | Path,
    *,
    times: Any = None,
    schedule: Mapping[str, Any] | None = None,
    options: Options | None = None,
) -> Evolution:
    """Go on with an evolution from its checkpoint, on any number of ranks (collective).

    The process, mesh, degree, scheme and schedule are the same as when :func:`evolve` or :func:`backward` was given the
    folder; ``times`` are those asked for then, and later ones, by default the former.  The answer is the whole
    evolution, what was kept included.

    Raises:
        FileNotFoundError: nothing was kept there.
        ValueError: the checkpoint of another evolution; what differs is named.
    """
    kept = describe(checkpoint, gen.domain.comm)
    limits, parts = None if kept["signed"] else limiter(gen), gen.absorbing if kept["evolution"] == "density" else ()
    evolution = Evolution(kept["evolution"], gen, parts, limits, schedule is not None)
    wanted = check_times(kept["times"] if times is None else times)
    return _run(evolution, None, wanted, kept["time_rtol"], options, schedule, checkpoint)


def _run(
    evolution: Evolution, v0: PETSc.Vec | None, times: np.ndarray, tol: float, options: Options | None,
    schedule: Mapping[str, Any] | None, checkpoint: str | Path | None,
) -> Evolution:  # fmt: skip
    """Evolve ``v0``, or what the checkpoint began with, and keep what comes."""
    gen, parts = evolution.generator, evolution.parts
    assert isinstance(gen, Generator)
    if gen.process.timed:
        schedule = {"t": lambda t: t, **(schedule or {})}
    equation, store = Equation(gen, schedule, parts, options), None
    try:
        if checkpoint is not None:
            store = Checkpoint(checkpoint, gen, evolution.name, signed=evolution.limiter is None)
            v0 = store.open(v0, times, tol, equation.signature)
        assert v0 is not None
        begin, spent = Snapshot(0.0, v0, np.zeros(len(parts) + 1 if parts else 0)), 0.0
        for snapshot, until in store.read(times) if store is not None else ():
            begin, spent = snapshot, until
            evolution.append(snapshot)
        density = evolution.name == "density"
        first = _sizes(gen, density, v0)
        with PETSc.Log.Stage("fpsolver evolve"):
            for snapshot in equation.run(v0, begin, spent, list(times[len(evolution) :]), tol, not density):
                _check_growth(gen, density, first, snapshot.time, snapshot.vector, equation.stats.solves)
                if store is not None:
                    store.save(len(evolution), snapshot, spent + equation.stats.error)
                evolution.append(snapshot)
    except NotConverged as error:
        error.partial = evolution
        raise
    finally:
        evolution.stats.update({**statistics(gen), **equation.work()})
    logger.info("%s", evolution)
    return evolution


def _sizes(gen: Generator, density: bool, vector: PETSc.Vec) -> np.ndarray:
    """Integrals of |p| and of |cell means|, or the largest |u|: none of them ever grows (collective).

    Discretised, ∫|p| may: of a point mass it is up to half the number of nodes in a cell, depending on the place.
    """
    if not density:
        return np.array([vector.norm(PETSc.NormType.NORM_INFINITY)])
    limit, function = limiter(gen), to_function(gen, vector)
    points, weights = basix.make_quadrature(cell_type(gen.domain.mesh), 2 * gen.degree)
    basis = gen.V.element.basix_element.tabulate(0, points)[0, :, :, 0]
    c, volumes = function.x.array[gen.V.dofmap.list[: limit.owned]], limit.volumes[: limit.owned]
    whole = volumes @ (abs(c @ basis.T) @ weights) / weights.sum()
    return total(gen.domain.comm, [whole, volumes @ abs(limit.means(function)[: limit.owned])])


def _check_growth(gen: Generator, density: bool, start: np.ndarray, t: float, vector: PETSc.Vec, solves: int) -> None:
    """Refuse what has grown since it had the sizes ``start``: the sign of an unstable discretisation (collective)."""
    if not gen.weak.scheme.may_grow or not (start > 0).all():
        return
    factors = _sizes(gen, density, vector) / start
    if (factors <= ([gen.V.dofmap.list.shape[1], MEANS] if density else [VALUES])).all():
        return
    what = "integral of its absolute value" if density else "largest absolute value"
    advice = (
        f"The solution's {what} grew by a factor of {factors[0]:.3g}, which that of the equation never does: the "
        "discretisation has a growing mode, or resolves nothing. Refine the mesh, take scheme='dg' or a lower degree, "
        "raise the quadrature degree (quadrature=), or add noise."
    )
    raise NotConverged(f"evolution to t = {t:.6g}", "DIVERGED_GROWTH", solves, float(factors[0]), "fp_evolve_", advice)


def check_times(times: Any) -> np.ndarray:
    """Output times as an array of shape (n,): finite, non-negative and sorted."""
    found = np.array(numbers(times, "times", wanted := "a sorted sequence of non-negative numbers, at least one,"))
    expect("times", times, wanted, found.min() >= 0 and (np.diff(found) >= 0).all())
    return found


def _weighted_tol(gen: Generator, p0: PETSc.Vec, tol: float) -> float:
    """``tol`` in the norm ∫ p²/w of the weighted scheme, which tails wider than those of w dominate (collective)."""
    ones, size = p0.copy(), p0.copy()
    ones.set(1.0)
    size.abs()
    image = gen.M * ones
    mass = size.dot(image)
    ratio = float(np.sqrt(max(p0.dot(gen.M * p0) * ones.dot(image), 0.0)) / mass) if mass else np.inf
    if not ratio <= WIDE * tol / LEAST:
        raise ValueError(
            f"initial density: it is too wide for scheme 'weighted' at time_rtol = {tol:.0e}: in that scheme's norm, "
            f"∫ p²/w, tails wider than those of the invariant density w make it {ratio:.1e} times that of w. Take a "
            "narrower initial density, backward or survival, whose data are no densities, or scheme='dg' or 'galerkin' "
            "until the density has settled."
        )
    return tol / max(ratio / WIDE, 1.0)
