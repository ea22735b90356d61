"""The Eyring–Kramers estimate of an exit time, with its hypotheses checked on the mesh."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ufl
from scipy.integrate import solve_ivp

from ..._answer import Answer
from ..._sample import push_forward
from ...discretisation.solution import as_points, locate
from ...domains.domain import Domain
from ...models.process import Process
from ..landscape.critical import CriticalPoint, contains, find_critical_points, polish
from ..landscape.points import Loss
from ..sampling import CellSamples, FacetSamples
from ._passes import Passes, owners

ENOUGH = 5.0
"""Barriers below this many temperatures are reported: the relative error is of the order of temperature / barrier."""

CLOSE = 3.0
"""Competing wells and passes within this many temperatures are reported."""


@dataclass(frozen=True, eq=False)
class EyringKramers(Answer):
    """Mean exit time 2π/|λ₋(z)| √(|det H(z)| / det H(m)) e^{(f(z) − f(m))/ε}, for dX = −∇f dt + √(2ε) dW.

    Attributes:
        time: the estimate, in time units of the process; inf beyond the range of floats, nan where it does not apply.
        log_time: its natural logarithm.
        barrier: f(z) − f(m); nan without a saddle.
        temperature: ε; nan where the noise has none.
        minimum: m, the bottom of the well that is left.
        saddle: z, the pass; None if the lowest pass is not a saddle.
        next_order: c in E τ = time · (1 + c ε + O(ε²)), in one dimension for symbolic losses; None elsewhere.
        on_boundary: whether the absorbing boundary passes through z, where half the paths return: the factor 1/2
            is in ``time``.
        failed: hypotheses that do not hold, in words; empty if all do.
    """

    time: float
    log_time: float
    barrier: float
    temperature: float
    minimum: CriticalPoint
    saddle: CriticalPoint | None
    next_order: float | None
    on_boundary: bool
    failed: tuple[str, ...]

    def __repr__(self) -> str:
        barrier = f"barrier {self.barrier:.6g} = {self.barrier / self.temperature:.4g} temperatures"
        failed = [f"  does not hold: {reason}" for reason in self.failed]
        return "\n".join([f"Eyring-Kramers time {self.time:.6g}; {barrier}", *failed])

    @property
    def holds(self) -> bool:
        """Whether every hypothesis holds."""
        return not self.failed


def eyring_kramers(
    process: Process,
    domain: Domain,
    *,
    start: Any = None,
    absorbing: Sequence[str] | str | None = None,
    minimum: CriticalPoint | None = None,
    saddle: CriticalPoint | None = None,
) -> EyringKramers:
    """Eyring–Kramers estimate of the mean exit time from a well (collective).

    Gradient flow leads from ``start`` to its minimum.  With ``absorbing`` parts the pass is the lowest one on the way
    to them, and the well the deepest one below that pass; without, the lowest pass to another minimum is taken.
    Bovier, Eckhoff, Gayrard, Klein, J. Eur. Math. Soc. 6 (2004), for wells in whole space: walls and absorbing
    boundaries must be many √ε away from m and z, or pass through z.

    Args:
        process: ``Langevin``, or ``SGD`` with isotropic noise of constant level s, where ε = η s/(2B).
        domain: where it lives.
        start: a point.
        absorbing: names of the absorbing parts.
        minimum: instead of ``start``: the well, from :func:`~fpsolver.diagnostics.critical_points`.
        saddle: with ``minimum``: the pass.

    Raises:
        TypeError: a process without a loss.
        ValueError: neither start nor minimum; start outside the mesh; no minimum at the end of the gradient flow.
    """
    loss = Loss(process, domain)
    points = [] if minimum and saddle else find_critical_points(loss, process, domain)
    if minimum is None:
        if start is None:
            raise ValueError("eyring_kramers: give a start, or a minimum (and a saddle).")
        minimum = _well_of(loss, domain, start, points)
    problems: list[str] = []
    if saddle is None:
        minimum = _known(points, np.array(minimum.point), loss, "minimum")
        minimum, saddle = _search(loss, domain, points, minimum, absorbing, _temperature(process), problems)
    return _estimate(loss, domain, _temperature(process), minimum, saddle, absorbing, problems)


def _temperature(process: Process) -> float:
    """ε of D = εI; nan if there is none."""
    level = process.isotropic_diffusion()
    return float("nan") if level is None else level


def _well_of(loss: Loss, domain: Domain, start: Any, points: list[CriticalPoint]) -> CriticalPoint:
    """The minimum at the end of the gradient flow from ``start`` (collective)."""
    x = as_points(start, domain.dim, "start")
    if len(x) != 1:
        raise ValueError(f"eyring_kramers: one start was expected, got {len(x)}.")
    locate(domain.mesh, x, "start")
    end = domain.comm.bcast(_flow(loss, x[0]) if domain.comm.rank == 0 else None, root=0)
    return _known(points, end, loss, f"the end of the gradient flow from start {tuple(x[0].tolist())}")


def _known(points: list[CriticalPoint], x: np.ndarray, loss: Loss, what: str) -> CriticalPoint:
    """The minimum on the mesh at x."""
    for c in points:
        if np.linalg.norm(x - c.point) < 1e-5 * loss.extent:
            if c.index == 0:
                return c
            raise ValueError(f"{what} is the {c.kind} {c.point}, not a minimum.")
    raise ValueError(f"{what} is no minimum inside the mesh, but near {tuple(x.tolist())}.")


def _flow(loss: Loss, x: np.ndarray) -> np.ndarray:
    def slope(t: float, y: np.ndarray) -> np.ndarray:
        return -loss.first(y[None])[1][0]

    def arrived(t: float, y: np.ndarray) -> float:
        return float(np.linalg.norm(slope(t, y)) - 1e-7 * scale)

    arrived.terminal = True  # type: ignore[attr-defined]
    _, g, H = loss.second(x[None])
    scale = max(float(np.linalg.norm(g)), 1e-6 * float(np.abs(H).max()) * loss.extent, 1e-300)
    if np.linalg.norm(g) > 1e-7 * scale:
        run = solve_ivp(slope, (0, 1e6 * loss.extent / scale), x, method="BDF", rtol=1e-6, events=arrived)
        x = run.y[:, -1]
    polished = polish(loss, x[None], scale)
    return polished[0] if len(polished) else x


def _search(
    loss: Loss,
    domain: Domain,
    points: list[CriticalPoint],
    well: CriticalPoint,
    absorbing: Sequence[str] | str | None,
    eps: float,
    problems: list[str],
) -> tuple[CriticalPoint, CriticalPoint | None]:
    """The well that is left and the pass (collective); ``problems`` collects competitors."""
    names = [absorbing] if isinstance(absorbing, str) else list(absorbing or ())
    passes, high = _passes(loss, domain, names)
    candidates = [c for c in points if c.index == 1 or c.kind == "degenerate"]
    minima = [c for c in points if c.index == 0]
    cells = {id(c): k for c, k in zip(points, _cells(passes, domain, points), strict=True)}
    reach, where = passes.heights(cells[id(well)])
    if names:
        height, place = reach[-1], where[-1]
        back = passes.heights()[0]
        inner = [m for m in minima if m is well or reach[cells[id(m)]] < height]
    else:
        others = [m for m in minima if m is not well]
        if not others:
            problems.append("nothing absorbs and there is no other minimum: there is nowhere to go")
            return well, None
        nearest = min(others, key=lambda m: reach[cells[id(m)]])
        height, place = reach[cells[id(nearest)]], where[cells[id(nearest)]]
        back, inner = passes.heights(cells[id(nearest)])[0], [well]
    bottom = min(inner, key=lambda m: m.value)
    through = [c for c in candidates if c.value >= height and max(reach[cells[id(c)]], back[cells[id(c)]]) <= c.value]
    through.sort(key=lambda c: c.value)
    level, top, middle = high(place)
    if not through or through[0].value > top + (top - level):
        at = "(" + ", ".join(f"{c:.4g}" for c in middle) + ")"
        problems.append(f"the lowest pass, f = {height:.6g} near {at}, is a boundary point or unresolved, not a saddle")
        return bottom, None
    for m in inner:
        if m is not bottom and m.value - bottom.value < CLOSE * eps:
            problems.append(f"the minimum {m.point} within the same well is nearly as deep (f = {m.value:.6g})")
    for z in through[1:]:
        if z.value - through[0].value < CLOSE * eps:
            problems.append(f"the saddle {z.point} competes: it is nearly as low (f = {z.value:.6g})")
    return bottom, through[0]


def _passes(loss: Loss, domain: Domain, names: list[str]) -> tuple[Passes, Any]:
    """Passes of the loss from cell to cell, and a function: cell -> its lowest and highest f and its middle."""
    cells, d = CellSamples(domain.mesh), domain.dim
    f = loss.first(cells.x.reshape(-1, d))[0].reshape(cells.x.shape[:2])
    facets = np.concatenate([np.zeros(0, np.int32), *(domain.facets(name) for name in names)])
    boundary = FacetSamples(domain.mesh, facets)
    g = loss.first(boundary.x.reshape(-1, d))[0].reshape(boundary.x.shape[:2])
    low = cells.lower(f)
    exits = owners(domain, facets), np.minimum(boundary.lower(g), g.min(axis=1, initial=np.inf))
    middle = push_forward(domain.mesh, np.full((1, d), 1 / (d + 1)), cells.cells)[:, 0]
    table = np.column_stack([low, cells.upper(f), middle])

    def high(place: int) -> tuple[float, float, np.ndarray]:
        row = np.concatenate(domain.comm.allgather(table))[place]
        return float(row[0]), float(row[1]), row[2:]

    return Passes(domain, low, exits), high


def _cells(passes: Passes, domain: Domain, points: list[CriticalPoint]) -> np.ndarray:
    x = np.array([c.point for c in points])
    index, cells = locate(domain.mesh, x)
    return passes.number(cells, index, len(x))


def _estimate(
    loss: Loss,
    domain: Domain,
    eps: float,
    m: CriticalPoint,
    z: CriticalPoint | None,
    absorbing: Sequence[str] | str | None,
    problems: list[str],
) -> EyringKramers:
    if np.isnan(eps):
        problems.append(
            "the noise is not isotropic of constant level: the process is not reversible with a Gibbs density, and "
            "barriers of the loss alone do not determine its exit times"
        )
    if eps == 0:
        problems.append("there is no noise")
    if _across(domain, m, np.eye(domain.dim), loss):
        problems.append(f"the minimum {m.point} lies on the boundary of the domain")
    singular = [c for c in (m, z) if c is not None and c.kind == "degenerate"]
    problems += [f"the Hessian is singular at {c.point}" for c in singular]
    nothing = float("nan")
    if z is None:
        return EyringKramers(nothing, nothing, nothing, eps, m, None, None, False, tuple(problems))
    if z.index != 1 and not singular:
        raise ValueError(f"eyring_kramers: {z.point} has index {z.index}; a saddle of index one was expected.")
    barrier = z.value - m.value
    if barrier < ENOUGH * eps:
        problems.append(f"the barrier is only {barrier / eps:.3g} temperatures high; at least {ENOUGH:g} were expected")
    unstable = np.linalg.eigh(z.hessian)[1][:, 0]
    half = _across(domain, z, unstable[None], loss)
    if half and (slant := _slant(domain, z, unstable)) > 1e-3:
        problems.append(f"the boundary through the saddle is not perpendicular to the path (sine {slant:.2g})")
    log_time = nothing
    if not singular and eps > 0:
        ratio = np.log(np.abs(z.eigenvalues)).sum() - np.log(m.eigenvalues).sum()
        log_time = float(np.log(2 * np.pi / abs(z.eigenvalues[0])) + 0.5 * ratio + barrier / eps)
        log_time -= np.log(2) if half else 0.0
    c = _next_order(loss, m, z) if loss.dim == 1 and loss.symbolic and not singular and not half else None
    with np.errstate(over="ignore"):
        time = float(np.exp(log_time))
    return EyringKramers(time, log_time, barrier, eps, m, z, c, half, tuple(problems))


def _next_order(loss: Loss, m: CriticalPoint, z: CriticalPoint) -> float:
    """c of the factor 1 + c ε, from Laplace's method in both integrals of the exact exit time."""
    a, b = m.eigenvalues[0], abs(z.eigenvalues[0])
    m3, m4 = loss.higher(m.point)
    z3, z4 = loss.higher(z.point)
    return float(5 * m3**2 / (24 * a**3) - m4 / (8 * a**2) + z4 / (8 * b**2) + 5 * z3**2 / (24 * b**3))


def _across(domain: Domain, c: CriticalPoint, directions: np.ndarray, loss: Loss) -> bool:
    """Whether a small step from a critical point leaves the mesh (collective)."""
    step = 1e-6 * loss.extent
    return not all(contains(domain, np.array(c.point) + s * step * v) for v in directions for s in (1, -1))


def _slant(domain: Domain, z: CriticalPoint, direction: np.ndarray) -> float:
    """Sine of the angle between a direction and the normal of the boundary facet nearest to z (collective)."""
    facets = np.concatenate([domain.facets(name) for name in domain.parts])
    samples = FacetSamples(domain.mesh, facets)
    n = samples.values([*ufl.FacetNormal(domain.mesh)]).reshape(-1, domain.dim)
    distance = np.linalg.norm(samples.x.reshape(-1, domain.dim) - z.point, axis=1)
    best = int(np.argmin(distance)) if len(distance) else 0
    mine = (float(distance[best]), float(abs(n[best] @ direction))) if len(distance) else (np.inf, 0.0)
    cosine = min(domain.comm.allgather(mine))[1]
    return float(np.sqrt(max(0.0, 1 - cosine**2)))
