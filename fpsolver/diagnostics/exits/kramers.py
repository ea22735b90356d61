"""The Eyring–Kramers estimate of an exit time, with its hypotheses checked on the mesh."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from ..._answer import Answer, place
from ..._arguments import part_names
from ..._sample import neighbours
from ...discretisation.solution import as_points, contains, locate
from ...domains.domain import Domain
from ...models.process import Process
from ..landscape.critical import CriticalPoint, find_critical_points, polish
from ..landscape.points import Loss
from ..sampling import Samples
from ._operator import Passes

ENOUGH = 5.0  # temperatures: lower barriers are reported, for the relative error is of order temperature / barrier
CLOSE = 3.0  # temperatures: within them competing wells and passes are reported


@dataclass(frozen=True, eq=False)
class EyringKramers(Answer):
    """Mean exit time 2π/|λ₋(z)| √(|det H(z)| / det H(m)) e^{(f(z) − f(m))/ε}, for dX = −∇f dt + √(2ε) dW.

    Attributes:
        time, log_time: the estimate, inf beyond the range of floats and nan where it does not apply; its logarithm.
        barrier, temperature: f(z) − f(m), nan without a saddle; ε, nan where the noise has none.
        minimum, saddle: m, the bottom of the well that is left; z, the pass, None if the lowest one is no saddle.
        next_order: c in E τ = time · (1 + c ε + O(ε²)), in one dimension for symbolic losses; None elsewhere.
        on_boundary: whether the absorbing boundary passes through z, where half the paths return: the factor 1/2
            is in ``time``, if the boundary is perpendicular to the path, which is not checked.
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
    process: Process, domain: Domain, *, start: Any, absorbing: Sequence[str] | str | None = None
) -> EyringKramers:
    """Eyring–Kramers estimate of the mean exit time from a well (collective).

    Gradient flow leads from ``start`` to its minimum.  With ``absorbing`` parts the pass is the lowest one on the way
    to them, and the well the deepest one below that pass; without, the lowest pass to another minimum is taken.
    Bovier, Eckhoff, Gayrard, Klein, J. Eur. Math. Soc. 6 (2004): walls and absorbing boundaries must be many √ε away
    from m and z, or pass through z.  Of ``Langevin``, or ``SGD`` with isotropic noise of level s, where ε = η s/(2B).

    Raises:
        TypeError: a process without a loss.
        ValueError: start outside the mesh; no minimum at the end of the gradient flow.
    """
    loss, x = Loss(process, domain), as_points(start, domain.dim, "start")
    if len(x) != 1:
        raise ValueError(f"eyring_kramers: one start was expected, got {len(x)}.")
    locate(domain.mesh, x, "start")
    points = find_critical_points(loss, process)
    end = domain.comm.bcast(_flow(loss, x[0]) if domain.comm.rank == 0 else None, root=0)
    well = next((c for c in points if np.linalg.norm(end - c.point) < 1e-5 * loss.extent and c.index == 0), None)
    if well is None:
        raise ValueError(
            f"the gradient flow from start {place(x[0])} ends near {place(end)}, not a minimum inside the mesh."
        )
    level = process.isotropic_diffusion()
    eps, problems = float("nan") if level is None else level, list[str]()
    m, z = _search(loss, points, well, part_names(absorbing or ()), eps, problems)
    return _estimate(loss, eps, m, z, problems)


def _flow(loss: Loss, x: np.ndarray) -> np.ndarray:
    """The end of the gradient flow."""

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
    loss: Loss, points: list[CriticalPoint], well: CriticalPoint, names: Sequence[str], eps: float, problems: list[str]
) -> tuple[CriticalPoint, CriticalPoint | None]:
    """The well that is left and the pass (collective); ``problems`` collects competitors."""
    domain = loss.domain
    facets = np.concatenate([np.zeros(0, np.int32), *(domain.facets(name) for name in names)])
    cells, boundary = Samples.lattice(domain.mesh), Samples.lattice(domain.mesh, facets)
    f, g = (loss.first(s.x.reshape(-1, domain.dim))[0].reshape(s.x.shape[:2]) for s in (cells, boundary))
    exits = neighbours(domain.mesh, facets)[0][:, 0], np.minimum(boundary.lower(g), g.min(axis=1, initial=np.inf))
    passes = Passes(domain, cells.lower(f), exits)
    table = np.concatenate(domain.comm.allgather(np.column_stack([cells.upper(f), cells.x.mean(axis=1)])))
    minima = [c for c in points if c.index == 0]
    where = {id(c): int(k) for c, k in zip(points, passes.number(np.array([c.point for c in points])), strict=True)}
    start = where[id(well)]
    targets = [-1] if names else [where[id(m)] for m in minima if m is not well]
    if not targets:
        problems.append("nothing absorbs and there is no other minimum: there is nowhere to go")
        return well, None
    (height, cell), target = min((passes.lowest(start, k), k) for k in targets)
    inside = passes.labels(np.nextafter(height, -np.inf))
    inner = [m for m in minima if m is well or (names and inside[where[id(m)]] == inside[start])]
    bottom = min(inner, key=lambda m: m.value)
    through: list[CriticalPoint] = []
    for c in sorted(points, key=lambda c: c.value):
        if c.value >= height and (c.index == 1 or c.kind == "degenerate"):
            label = passes.labels(c.value)
            through += [c] if label[where[id(c)]] == label[start] == label[target] else []
    top, *middle = table[cell]
    if not through or through[0].value > 2 * top - passes.level[cell]:
        problems.append(f"the lowest pass, f = {height:.6g} near {place(middle, 4)}, is not a saddle, or not resolved")
        return bottom, None
    for m in inner:
        if m is not bottom and m.value - bottom.value < CLOSE * eps:
            problems.append(f"the minimum {m.point} within the same well is nearly as deep (f = {m.value:.6g})")
    for z in through[1:]:
        if z.value - through[0].value < CLOSE * eps:
            problems.append(f"the saddle {z.point} competes: it is nearly as low (f = {z.value:.6g})")
    return bottom, through[0]


def _estimate(loss: Loss, eps: float, m: CriticalPoint, z: CriticalPoint | None, problems: list[str]) -> EyringKramers:
    if np.isnan(eps):
        problems.append(
            "the noise is not isotropic of constant level: the process is not reversible with a Gibbs density, and "
            "barriers of the loss alone do not determine its exit times"
        )
    if eps == 0:
        problems.append("there is no noise")
    if _across(loss, m, np.eye(loss.dim)):
        problems.append(f"the minimum {m.point} lies on the boundary of the domain")
    singular = [c for c in (m, z) if c is not None and c.kind == "degenerate"]
    problems += [f"the Hessian is singular at {c.point}" for c in singular]
    log_time = float("nan")
    if z is None:
        return EyringKramers(log_time, log_time, log_time, eps, m, None, None, False, tuple(problems))
    barrier = z.value - m.value
    if barrier < ENOUGH * eps:
        problems.append(f"the barrier is only {barrier / eps:.3g} temperatures high; at least {ENOUGH:g} were expected")
    unstable = np.linalg.eigh(z.hessian)[1][:, 0]
    half = _across(loss, z, unstable[None])
    if not singular and eps > 0:
        ratio = np.log(np.abs(z.eigenvalues)).sum() - np.log(m.eigenvalues).sum()
        log_time = float(np.log((1 if half else 2) * np.pi / abs(z.eigenvalues[0])) + 0.5 * ratio + barrier / eps)
    c = None
    if loss.dim == 1 and loss.symbolic and not singular and not half:  # Laplace's method in the exact exit time
        (a, m3, m4), (b, z3, z4) = ((abs(p.eigenvalues[0]), *loss.higher(p.point)) for p in (m, z))
        c = float(5 * m3**2 / (24 * a**3) - m4 / (8 * a**2) + z4 / (8 * b**2) + 5 * z3**2 / (24 * b**3))
    with np.errstate(over="ignore"):
        time = float(np.exp(log_time))
    return EyringKramers(time, log_time, barrier, eps, m, z, c, half, tuple(problems))


def _across(loss: Loss, c: CriticalPoint, directions: np.ndarray) -> bool:
    """Whether a small step from a critical point leaves the mesh (collective)."""
    steps = 1e-6 * loss.extent * np.concatenate([directions, -directions])
    return not contains(loss.domain.mesh, c.point + steps).all()
