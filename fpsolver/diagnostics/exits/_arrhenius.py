"""The Arrhenius lower bound: e^{αf} grows slowly within the well below the lowest pass to the exit."""

import numpy as np
from ufl.algorithms import extract_coefficients

from ...discretisation.solution import locate
from ..pointwise import Pointwise
from ..sampling import largest, supremum
from ._operator import Operator, Verdict
from ._passes import Passes, owners


def _energy_at(op: Operator, x: np.ndarray) -> np.ndarray:
    process = op.gen.process
    return Pointwise(op.dim, lambda mesh: process.energy(process.space(mesh, 1)), op.comm)(x)


def arrhenius(op: Operator, x: np.ndarray) -> Verdict:
    """(e^{αℓ} − e^{αf(x)}) / sup (L e^{αf})⁺ over the component of {f < ℓ}, ℓ a lower estimate of the lowest pass."""
    f = op.gen.process.energy(op.space)
    if f is None or extract_coefficients(f):
        what = f"{type(op.gen.process).__name__} has no loss"
        why = what if f is None else "the loss is tabulated: its gradient jumps between cells, and e^{αf} is not C¹"
        return "lower", None, False, why, {}
    d = op.dim
    gradient = [f.dx(i) for i in range(d)]
    table = op.cells.values([f, *gradient, *(g.dx(j) for g in gradient for j in range(d))])
    F, g = table[..., 0], table[..., 1 : d + 1]
    A = op.generate(g, table[..., d + 1 :].reshape(*F.shape, d, d))
    B = np.einsum("cpi,cpij,cpj->cp", g, op.D, g)
    slope = np.einsum("fpi,fpi->fp", op.wall.conormal, op.wall.samples.values(gradient))
    bad = owners(op.gen.domain, op.wall.facets[op.blocked(-slope)])
    exits = owners(op.gen.domain, op.exit_facets), op.exits.lower(op.exits.values([f])[..., 0])
    passes = Passes(op.gen.domain, op.cells.lower(F), exits)
    index, cells = locate(op.gen.domain.mesh, x)
    number = passes.number(cells, index, len(x))
    level, height = _energy_at(op, x), passes.heights()[0]
    constants: dict[str, float] = {}
    value = np.zeros(len(x))
    for k in range(len(x)):
        ell = float(height[number[k]])
        inside = passes.component(int(number[k]), ell)
        if level[k] >= ell or op.comm.allreduce(int(inside[bad].sum())):
            continue
        value[k], found = _best_rate(op, F[inside], A[inside], B[inside], inside, float(level[k]), ell)
        constants = found if k == 0 else constants
    if not value.any():
        why = f"the start lies above the lowest pass to the exit, or {op.why_blocked('≤')}"
        return "lower", None, False, why, {}
    return "lower", value, True, "L e^{αf} is bounded by c in the well below the pass", constants


def _best_rate(
    op: Operator, F: np.ndarray, A: np.ndarray, B: np.ndarray, inside: np.ndarray, level: float, ell: float
) -> tuple[float, dict[str, float]]:
    below = np.minimum(F - ell, 0.0)
    noise = max(supremum(op.comm, np.linalg.eigvalsh(np.nan_to_num(op.D[inside]))[..., -1]), 1e-300)
    lowest, highest = min(1e-2 / max(ell - level, 1e-300), 1e-2 / noise), 2 / noise
    for _ in range(2):
        rates = np.geomspace(lowest, highest, 40)
        grown = [np.max(op.cells.upper(a * np.exp(a * below) * (A + a * B)), initial=-np.inf) for a in rates]
        c = largest(op.comm, grown)
        with np.errstate(divide="ignore"):
            values = np.where(c > 0, -np.expm1(rates * (level - ell)) / c, np.inf)  # no growth at all: no exit
        j = int(np.argmax(values))
        lowest, highest = rates[max(j - 1, 0)], rates[min(j + 1, len(rates) - 1)]
    return float(values[j]), {"alpha": float(rates[j]), "theta": float(1 - rates[j] * noise), "pass": ell}
