"""Where the diffusion approximation holds: PDE, chain of the algorithm and paths of both, side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from .._answer import Answer
from .._arguments import check_positive, expect
from .._errors import together
from ..chain import Chain
from ..discretisation.generator import Generator
from ..domains.domain import Domain
from ..evolution.evolve import backward
from ..exits.exit import mean_exit_time
from ..models.optimisers import SGD, MomentumSGD
from ..pointwise.family import lambdify
from ..pointwise.lambdify import PointSpace
from .ensemble import LEVEL, Ensemble, Estimate, computed
from .simulate import simulate

TOL = 1e-6  # of expectations in time, relative
COLUMNS = {"pde": "PDE", "chain": "chain", "sde": "SDE paths", "sgd": "SGD paths"}


@dataclass(frozen=True)
class Row:
    """One learning rate.

    Attributes:
        learning_rate: η.
        pde: exit times in steps, or the expectation, with its error bar (for expectations: from one degree more).
        chain: the same of the algorithm itself; None if it was not asked for.
        sde, sgd: by paths of the diffusion and of the algorithm.
        discrepancy: chain, or else SGD paths, minus PDE, with both error bars; for exit times relative to the PDE.
        doubts: sentences on the columns that are not to be trusted, and why.
    """

    learning_rate: float
    pde: Estimate
    chain: Estimate | None
    sde: Estimate
    sgd: Estimate
    discrepancy: Estimate
    doubts: tuple[str, ...] = ()

    @property
    def significant(self) -> bool:
        """Whether the discrepancy differs from zero."""
        return not self.discrepancy.covers(0.0)


@dataclass(frozen=True)
class Comparison(Answer):
    """What :func:`compare` found; the same on all ranks.  ``print`` shows the table.

    Attributes:
        rows: one per learning rate.
        quantity: what was compared.
        order: p of |discrepancy| = C η^p with its interval; None if fewer than two discrepancies differ from zero.
    """

    rows: tuple[Row, ...]
    quantity: str
    order: Estimate | None

    def __repr__(self) -> str:
        columns = [(name, title) for name, title in COLUMNS.items() if getattr(self.rows[0], name) is not None]
        head = "".join(f" {title:>22}" for _, title in columns)
        lines = [f"{self.quantity}; intervals of {self.rows[0].sgd.level:.0%}", f"{'η':>9}{head} {'discrepancy':>22}"]
        for r in self.rows:
            mark = "" if r.significant else "  (within noise)"
            cells = "".join(f" {getattr(r, name)!s:>22}" for name, _ in columns)
            lines.append(f"{r.learning_rate:9.4g}{cells} {r.discrepancy!s:>22}{mark}")
        lines += [f"η = {r.learning_rate:g}: {doubt}" for r in self.rows for doubt in r.doubts]
        order = self.order or "not fitted: fewer than two discrepancies are told from zero"
        return "\n".join([*lines, f"order of the discrepancy in η: {order}"])


def compare(
    process: SGD | MomentumSGD | Callable[[float], SGD | MomentumSGD],
    domain: Domain,
    learning_rates: Sequence[float],
    start: Any,
    *,
    quantity: str | Callable[[Any], Any] = "exit_time",
    time: float | None = None,
    absorbing: Sequence[str] | str = (),
    paths: int = 10_000,
    seed: int = 0,
    degree: int | None = None,
    scheme: str = "auto",
    chain: bool = True,
) -> Comparison:
    """Compare the PDE, the chain of the algorithm and paths of both, for a sweep of learning rates (collective).

    SDE paths must agree with the PDE, and SGD paths with the chain, within their intervals, or one of them is wrong,
    and :attr:`Row.doubts` says which; the difference between PDE and chain, without sampling noise, is what the
    diffusion leaves out.

    Args:
        process: an SGD process, or a function that makes one for a learning rate.
        domain: where.
        learning_rates: at least one η.
        start: a point (d,).
        quantity: "exit_time", in steps of the algorithm, compared relative to the PDE's; or g, a callable of x giving
            UFL, for E[g(X_t); t < τ] at ``time``.
        time: t, for g; the algorithm does round(t/η) steps, so take learning rates that divide it.
        absorbing: absorbing parts of the boundary.
        paths: of each ensemble.
        seed: of the SDE paths; seed + 1 is that of the algorithm.
        degree: of the generators.
        scheme: of the generators.
        chain: whether to solve for the algorithm itself as well (see :class:`~fpsolver.Chain`).

    Raises:
        ValueError: a learning rate that is not positive, ``time`` missing or no multiple of one, nothing that absorbs.
    """
    rates = [check_positive("compare: learning_rate", r) for r in learning_rates]
    fixed, timed = isinstance(process, SGD | MomentumSGD), not isinstance(quantity, str)
    if not fixed and not callable(process):
        raise TypeError(f"compare: process is a {type(process).__name__}; expected fp.SGD or a function of η.")
    expect("compare: quantity", quantity, "'exit_time' or a callable of x", timed or quantity == "exit_time")
    if timed and time is None:
        raise ValueError("compare: give time=, when the expectation is taken.")
    if not timed and not absorbing:
        raise ValueError("compare: nothing absorbs, so there is no exit time. Give absorbing= parts.")
    rows, time = [], time if timed else None
    gen: Any = None
    for eta in rates:
        one = process.with_parameters(learning_rate=eta) if fixed else process(eta)  # type: ignore[union-attr, operator]
        unit = one.time_per_step
        if time is not None and abs(time / unit - round(time / unit)) > 1e-6:
            raise ValueError(f"compare: time {time:g} is no whole number of steps of {unit:g}.")
        again = fixed and gen is not None
        gen = gen.replace(learning_rate=eta) if again else Generator(one, domain, absorbing, degree, scheme)
        models = [gen, Chain(one, domain, absorbing)] if chain else [gen]
        common: Any = {"absorbing": absorbing, "paths": paths, "times": [time] if timed else None, "horizon": time}
        sde = simulate(one, domain, start, seed=seed, **common)
        sgd = simulate(one, domain, start, method="sgd", seed=seed + 1, **common)
        rows.append(_row(eta, models, (sde, sgd), start, quantity, time))
    name = f"E g(X) at time {time:g}" if timed else "mean exit time in steps"
    return Comparison(tuple(rows), name, fit_order(rates, [r.discrepancy for r in rows]))


def _row(
    eta: float, models: Sequence[Any], paths: Sequence[Ensemble], start: Any, quantity: Any, time: float | None
) -> Row:
    domain, process = models[0].domain, models[0].process
    unit, point = process.time_per_step, np.asarray(getattr(start, "point", start), dtype=float).reshape(1, -1)
    found: list[Any] = []
    for model in models:
        if time is None:
            tau: Any = mean_exit_time(model, start=point).in_steps()
            found.append(computed(float(tau.value[0]), float(tau.error[0])))
        else:
            u = backward(model, quantity, [time], time_rtol=TOL)[0]
            found.append(computed(float(u.at(point)[0]), float(u.error_at(point)[0])))
    pde, by_chain = [*found, None][:2]
    if time is None:
        ask = lambda e: e.mean_exit_time().scaled(1 / unit)  # noqa: E731
    else:
        space = PointSpace(domain.dim, process=process)
        with together(domain.comm):
            g = lambdify([space.scalar(quantity, "compare: quantity")], space)
        ask = lambda e: e.expectation(lambda x: g(x)[0])[0]  # noqa: E731
    with together(domain.comm):
        by_sde, by_sgd = map(ask, paths)
    size = abs(pde.value) if time is None else 1.0
    true = by_chain or by_sgd
    low, high = (true.low - pde.high) / size, (true.high - pde.low) / size
    gap = Estimate((true.value - pde.value) / size, low, high, by_sgd.level, true.count)
    doubts = _doubts(pde, by_sde, *paths)
    if by_chain and _differ(by_chain, by_sgd):
        both = f"{by_chain} and {by_sgd}"
        doubts.append(f"chain and SGD paths, two ways to one number, differ: {both}. Doubt the chain: refine its mesh")
    return Row(eta, pde, by_chain, by_sde, by_sgd, gap, tuple(doubts))


def _differ(computed: Estimate, paths: Estimate) -> bool:
    """By more than three standard deviations."""
    return not abs(computed.value - paths.value) <= computed.error + 1.5 * paths.error


def _doubts(pde: Estimate, paths: Estimate, sde: Ensemble, sgd: Ensemble) -> list[str]:
    """Which columns are not to be trusted: the PDE and the paths of its diffusion are two ways to one number."""
    doubts = []
    if _differ(pde, paths):
        mesh = "the PDE, whose mesh resolves less than its error bar claims: refine it"
        who = mesh if sde.settled else "the SDE paths, whose step is too long"
        doubts.append(f"PDE and SDE paths, two ways to one number, differ: {pde} and {paths}. Doubt {who}")
    elif pde.error > 0.1 * abs(pde.value):
        doubts.append(f"Doubt the PDE: its error bar is {pde.error / abs(pde.value):.0%} of its value; refine the mesh")
    return doubts + [f"Doubt the {e.method.upper()} paths: {warning}" for e in (sde, sgd) for warning in e.warnings]


def fit_order(rates: Sequence[float], discrepancies: Sequence[Estimate], level: float = LEVEL) -> Estimate | None:
    """Slope of log |discrepancy| against log η by least squares weighted by their errors, with its interval.

    The interval grows where points scatter about the line by more than these; what may be zero is left out.
    """
    known = [(e, d) for e, d in zip(rates, discrepancies, strict=True) if not d.covers(0.0)]
    if len({e for e, _ in known}) < 2:
        return None
    x, y = np.log([(e, abs(d.value)) for e, d in known]).T
    sigma = np.array([max(d.error / stats.norm.ppf((1 + d.level) / 2) / abs(d.value), 1e-12) for _, d in known])
    fit, covariance = np.polyfit(x, y, 1, w=1 / sigma, cov="unscaled")
    freedom = len(x) - 2
    excess = float((((y - np.polyval(fit, x)) / sigma) ** 2).sum() / freedom) if freedom else 1.0
    half = float(stats.norm.ppf((1 + level) / 2) * np.sqrt(covariance[0, 0] * max(1.0, excess)))
    left = len(rates) - len(known)
    note = f"{left} learning rate(s) left out, within noise" if left else ""
    return Estimate(float(fit[0]), float(fit[0]) - half, float(fit[0]) + half, level, len(x), note)
