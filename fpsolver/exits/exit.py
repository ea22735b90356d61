"""Leaving the domain: expectations over exit paths, each one backward solve with the factorised generator."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .._answer import Answer, steps_of
from .._arguments import check_integer, need_still
from .._log import logger
from .._petsc import Options
from ..chain import Chain
from ..chain.refinement import MAX_UNKNOWNS
from ..discretisation.generator import Generator
from ..discretisation.solution import Solution
from ..domains.regions import is_ball
from ._expectation import Question, expectation, moments
from ._guards import need_exit
from ._stopped import Region, stopped
from .adapt import answers


def feynman_kac(
    gen: Generator | Chain,
    *,
    exit: Any = 0.0,
    running: Any = 0.0,
    killing: Any = 0.0,
    start: Any = None,
    options: Options | None = None,
    name: str = "expectation",
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
) -> Solution:
    """u(x) = E[g(X_τ) e^{−∫s} + ∫₀^τ f(X_t) e^{−∫s} dt | X₀ = x] (collective).

    Solves L u − s u + f = 0 with u = g where the absorbing boundary accepts data.  Of a chain, with τ = ηK,
    E[g(X_τ) Π_{k<K} e^{−ηs(X_k)} + Σ_{k<K} η f(X_k) Π_{j<k} e^{−ηs(X_j)}], g taken where the last step crosses the
    boundary.

    Args:
        gen: generator or chain with at least one absorbing part, or a positive killing rate.
        exit: g, a scalar source for the whole absorbing boundary, or a dictionary part -> source (others: zero).
        running: f, a scalar source or a ``Function`` on ``gen.V``.
        killing: s, a scalar source.
        start: points of shape (n, d) or (d,), or an initial density as in :func:`fpsolver.exit_distribution`.  For it
            ``solution.error`` gives the error bars, at the price of solving with degrees k + 1 and k − 1 as well, of a
            chain on three variants (about three times the time of the answer).  Without it that is done when the error
            is first asked for.
        rtol: refine the mesh (of a chain all of it) until the error bar at the start, one point or density, is at most
            this times the answer; ``solution.generator`` is then that of the last mesh, ``solution.history`` has all.
        max_unknowns: with ``rtol``, no mesh with more unknowns is tried.
        options: PETSc options without the prefix ``fp_exit_``.
        name: what the answer is called.

    Raises:
        ValueError: nothing absorbs and nothing kills; unknown part; sources that are not finite; the killing rate is so
            negative that the expectation is infinite; with ``rtol``, sources or coefficients of the process that are
            tied to the mesh.
        NotConverged: the solve failed; with ``rtol``, ``max_unknowns`` or the floor of rounding was reached, and
            ``exception.partial`` is the answer so far.
    """
    need_still(gen, name)
    data = dict(exit) if isinstance(exit, Mapping) else dict.fromkeys(gen.absorbing, exit)
    question = Question(name, data, running, killing, options)
    if not question.killed:
        need_exit(gen, name)
    for part in data:
        if part not in gen.absorbing:
            raise ValueError(f"exit data on {part!r}, which does not absorb; absorbing are {', '.join(gen.absorbing)}.")
    return answers(
        name, gen, lambda other, _: [expectation(other, question)], start, rtol, max_unknowns, killing=killing,
        options=options, is_time=question.is_time, sources=(running, killing, *data.values()),
    )[0]  # fmt: skip


def mean_exit_time(
    gen: Generator | Chain, *, start: Any = None, rtol: float | None = None, max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
) -> Solution:  # fmt: skip
    """τ(x) = E[exit time | X₀ = x]: Lτ = −1, τ = 0 on the absorbing part (collective).

    Also called mean first-passage time, or escape time.  In the process' time units; :meth:`Solution.in_steps` counts
    steps of an algorithm.  Everything optional as in :func:`feynman_kac`.
    """
    if isinstance(gen, Generator) and steps_of(gen.process) is not None:
        logger.info(
            "mean exit time: of the diffusion. How long rare escapes of the algorithm take, all cumulants of its noise "
            "decide, and the two may differ by orders of magnitude: fp.Chain answers for the algorithm, "
            "fp.diagnostics.validity compares them."
        )
    more: Any = {"start": start, "rtol": rtol, "max_unknowns": max_unknowns, "options": options}
    return feynman_kac(gen, running=1.0, name="mean exit time", **more)


@dataclass(frozen=True)
class ExitTimeMoments(Answer, Sequence[Solution]):
    """Moments of the exit time; ``moments[n - 1]`` is the :class:`Solution` E τⁿ."""

    solutions: tuple[Solution, ...]

    def __getitem__(self, i: Any) -> Any:
        return self.solutions[i]

    def __len__(self) -> int:
        return len(self.solutions)

    def in_steps(self) -> "ExitTimeMoments":
        """Moments of the number of steps of an algorithm (collective)."""
        return ExitTimeMoments(tuple(m.in_steps() for m in self.solutions))

    def __repr__(self) -> str:
        return "\n".join(str(m).partition("\n")[0] for m in self.solutions)


def exit_time_moments(
    gen: Generator | Chain,
    order: int,
    *,
    start: Any = None,
    options: Options | None = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
) -> ExitTimeMoments:
    """E τ, E τ², ..., E τ^order, one solve each (collective).

    Everything optional as in :func:`feynman_kac`, with ``rtol`` of the highest moment; error bars contain what the
    lower moments contribute.
    """
    need_still(gen, "exit_time_moments")
    order = check_integer("exit_time_moments: order", order)
    need_exit(gen, "mean exit time")
    solve = lambda other, n: moments(other, n, options)  # noqa: E731
    found = answers(
        "exit_time_moments", gen, solve, start, rtol, max_unknowns, order=order, options=options, is_time=True
    )
    return ExitTimeMoments(tuple(found))


def exit_probability(
    gen: Generator | Chain, to: Region | Iterable[Region], *, start: Any = None, rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS, options: Options | None = None,
) -> Solution:  # fmt: skip
    """Probability of leaving through ``to`` rather than the other absorbing parts (collective).

    Also called splitting probability.  ``to`` is one or several absorbing parts, or regions as
    :func:`~fpsolver.committor` takes them, where the process then stops as well.  Everything optional as in
    :func:`feynman_kac`.
    """
    many = isinstance(to, Iterable) and not (isinstance(to, str) or callable(to) or is_ball(to))
    targets: list[Any] = list(cast(Iterable[Any], to)) if many else [to]
    named = set(gen.domain.regions) - set(gen.domain.parts)
    inside = [callable(t) or is_ball(t) or (isinstance(t, str) and t in named) for t in targets]
    regions = {f"target {i}": t for i, (t, inner) in enumerate(zip(targets, inside, strict=True), 1) if inner}
    names = [t for t, inner in zip(targets, inside, strict=True) if not inner]
    if not regions:
        need_exit(gen, "exit_probability")
    expected = f"names of absorbing parts ({', '.join(gen.absorbing)}), regions were expected."
    if not all(isinstance(part, str) for part in names):
        raise TypeError(f"exit_probability: to is {to!r}; {expected}")
    if not targets:
        raise ValueError(f"exit_probability: to is empty; {expected}")
    if regions:
        gen = stopped(gen, regions)
    more: Any = {"start": start, "rtol": rtol, "max_unknowns": max_unknowns, "options": options}
    return feynman_kac(gen, exit=dict.fromkeys([*names, *regions], 1.0), name="exit probability", **more)
