"""Leaving the domain: the exit questions of a chain, with the same calls as those of a generator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import comb
from typing import Any

from petsc4py import PETSc

from .._log import logger
from .._petsc import Options
from .._verbs import answers
from ..discretisation.solution import Level, Solution
from ..exits import exit as verbs
from ..exits.adapt import MAX_UNKNOWNS
from ..exits.exit import ExitTimeMoments
from ..models.fields import is_number
from ._bars import Spread, to_accuracy
from ._killed import Question, check_sound, check_times
from ._solve import Figures, Shell, solve
from .chain import Chain

Ask = Callable[[Chain], tuple[PETSc.Vec, Figures]]


@answers(verbs.feynman_kac, Chain)
def feynman_kac(
    chain: Chain,
    *,
    exit: Any = 0.0,
    running: Any = 0.0,
    killing: Any = 0.0,
    start: Any = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
    name: str = "expectation",
) -> Solution:
    """u(x) = E[g(X_τ) Π_{k<K} e^{−ηs(X_k)} + Σ_{k<K} η f(X_k) Π_{j<k} e^{−ηs(X_j)}], τ = ηK (collective).

    g is taken where the last step crosses the boundary.

    Args:
        chain: with at least one absorbing part, or a positive killing rate.
        exit: g, a source or a dictionary part -> source.
        running: f, a source.
        killing: s, a source.
        start: points or an initial law, as of a generator.
        rtol: cut all cells in two until the error bar at the start is at most this times the answer.
        max_unknowns: with ``rtol``, no mesh with more unknowns is tried.
        options: PETSc options without the prefix ``fp_exit_``.
        name: what the answer is called.
    """
    data = exit if isinstance(exit, Mapping) else dict.fromkeys(chain.exits, exit)
    for part in data:
        if part not in chain.exits:
            known = ", ".join(chain.exits) or "none"
            raise ValueError(f"{name}: exit data on {part!r}, which does not absorb; absorbing are {known}.")
    if not chain.exits and is_number(killing) and not killing > 0:
        need_exit(chain, name)
    ask = Question(data, running, killing, name, options).ask
    return to_accuracy(partial(_answer, ask=ask, name=name, start=start), chain, name, start, rtol, max_unknowns)


def need_exit(chain: Chain, name: str) -> None:
    """Refuse a question about leaving where nothing absorbs."""
    if not chain.exits:
        raise ValueError(
            f"{name}: nothing absorbs, so the chain never leaves. Give it absorbing parts; the domain has "
            f"{', '.join(chain.domain.parts) or 'none'}."
        )


def _answer(
    chain: Chain,
    history: tuple[Level, ...] | None,
    *,
    ask: Ask,
    name: str,
    start: Any,
    power: int | None = None,
    times: bool = False,
) -> Solution:
    """The answer of one chain; with bars at the start, if there is one (collective)."""
    u, figures = ask(chain)
    check_sound(chain, name, figures)
    if times:
        check_times(chain, name, u, figures)
    stats = {**chain.stats(), "iterations": figures.iterations, "residual": figures.residual}
    stats["roundoff"] = figures.roundoff
    estimate = Spread(chain, u, lambda other: ask(other)[0], start, figures.roundoff)
    about: dict[str, Any] = {"generator": chain, "unit": None if power is None else chain.time_per_step**power}
    if start is not None:
        values, error = estimate.values(), estimate.at_start()
        about |= {"start": estimate.start, "value": values[0], "error": error}
        if history is not None:
            level = Level(chain.cells.size, chain.M.getSize()[0], float(values[0][0]), float(error[0]))
            about["history"] = (*history, level)
    solution = Solution(chain.function(u), stats, name, estimate, **about)
    logger.info("%s", solution)
    return solution


@answers(verbs.mean_exit_time, Chain)
def mean_exit_time(
    chain: Chain,
    *,
    start: Any = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
    name: str = "mean exit time",
) -> Solution:
    """E[τ | X₀ = x], τ = η times the steps until one ends beyond an absorbing part (collective)."""
    need_exit(chain, name)
    ask = Question({}, running=1.0, name=name, options=options).ask
    answer = partial(_answer, ask=ask, name=name, start=start, power=1, times=True)
    return to_accuracy(answer, chain, name, start, rtol, max_unknowns)


@answers(verbs.exit_probability, Chain)
def exit_probability(
    chain: Chain,
    to: Sequence[str] | str,
    *,
    start: Any = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
    name: str = "exit probability",
) -> Solution:
    """Probability of leaving through the parts ``to`` rather than the other absorbing parts (collective)."""
    need_exit(chain, name)
    names = [to] if isinstance(to, str) else list(to) if isinstance(to, Iterable) else [to]
    if not names or not all(isinstance(part, str) for part in names):
        known = ", ".join(chain.exits)
        raise TypeError(f"exit_probability: to is {to!r}; names of absorbing parts were expected: {known}.")
    more: Any = {"start": start, "rtol": rtol, "max_unknowns": max_unknowns, "options": options}
    return feynman_kac(chain, exit=dict.fromkeys(names, 1.0), name=name, **more)


@answers(verbs.exit_time_moments, Chain)
def exit_time_moments(
    chain: Chain,
    order: int,
    *,
    start: Any = None,
    rtol: float | None = None,
    max_unknowns: int = MAX_UNKNOWNS,
    options: Options | None = None,
) -> ExitTimeMoments:
    """[E τ, ..., E τ^order], by E(K^n) = Σ_j C(n, j) P E(K^j) from 1 + K' (collective)."""
    need_exit(chain, "exit time moments")
    if not is_number(order) or int(order) != order or order < 1:
        raise ValueError(f"exit_time_moments: order is {order!r}; an integer of at least 1 was expected.")

    def moment(n: int) -> Callable[..., Solution]:
        name = "mean exit time" if n == 1 else f"exit time moment {n}"
        ask = partial(_moment, n=n, options=options)
        return partial(_answer, ask=ask, name=name, start=start, power=n, times=n == 1)

    highest = to_accuracy(moment(int(order)), chain, "exit_time_moments", start, rtol, max_unknowns)
    return ExitTimeMoments((*(moment(n)(highest.generator, None) for n in range(1, int(order))), highest))


def _moment(chain: Chain, n: int, options: Options | None) -> tuple[PETSc.Vec, Figures]:
    """With T_0 = 1 the moments of K = 1 + K': (M − P) T_n = Σ_{j<n} C(n, j) P T_j + exits; times η^n."""
    eta, P, inverse = chain.time_per_step, chain.P, chain.assembled.inverse
    # P T_0 and the exits together are M1: what is counted after a step is its own 1
    after = [chain.integrals]
    rhs, b = chain.integrals.duplicate(), chain.integrals.duplicate()
    for order in range(1, n + 1):
        rhs.set(0.0)
        for j, vector in enumerate(after):
            rhs.axpy(float(comb(order, j)), vector)
        inverse.mult(rhs, b)
        u, figures = solve(Shell(inverse, P), b, f"exit time moment {order}", options)
        image = u.duplicate()
        P.mult(u, image)
        after.append(image)
    u.scale(eta**n)
    return u, figures


def occupation(chain: Chain, source: PETSc.Vec, name: str, options: Options | None = None) -> tuple[PETSc.Vec, Any]:
    """Expected visits as moments: (I − Pᵀ M⁻¹) μ = source (collective)."""
    return solve(Shell(chain.assembled.inverse, chain.P, transpose=True), source, name, options)
