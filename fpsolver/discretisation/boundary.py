"""Which boundary takes data: the Fichera classes of every facet, and what the process does inside the cells.

With outward normal n, δ = n·Dn and the Fichera function β·n: backward data belong where δ > 0 (diffusive) or where
δ = 0 and β·n > 0 (outflow); nothing can be imposed where δ = 0 and β·n ≤ 0 (inflow, characteristic).
Fichera (1956); Oleinik, Radkevich (1973), whose inward normal gives the opposite sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import basix
import numpy as np
import ufl
from dolfinx import fem, la
from dolfinx import mesh as dmesh

from .. import _compat
from .._errors import agree
from .._log import logger
from .._sample import Array, at_quadrature, cell_type, largest, neighbours, on_sides, outer_sides, total, values
from ..domains.domain import Domain
from ..models.process import Coefficients
from .weak import WeakForm, positive

CURVED = 1e-6  # on curved facets: the squared error of their normals, 1e-10 to 1e-7 at h = 0.1 to 0.3 of the radius
TOLERANCE = 1e-11  # relative to the largest value on the domain; rounding of symbolic coefficients stays below 1e-13
PERIODIC = 1e-6  # of the largest value: by how much the two sides of a periodic domain may differ


class FicheraClasses(NamedTuple):
    """Measure of each class on a part of the boundary."""

    diffusive: float
    outflow: float
    inflow: float
    characteristic: float

    @property
    def measure(self) -> float:
        """Measure of the whole part."""
        return sum(self)


@dataclass(frozen=True)
class Survey:
    """Extremes of the coefficients over the cells, the same on all ranks."""

    diffusion: float  #: largest eigenvalue of D
    drift: float  #: largest |β|
    degenerate: bool  #: whether the smallest eigenvalue of D vanishes (relatively) anywhere
    peclet: float  #: largest |β|h / (2 k λ_min) with the cell size h and the degree k; infinite where degenerate


def survey_cells(mesh: dmesh.Mesh, coefficients: Coefficients, degree: int) -> Survey:
    """Evaluate D and β in every cell; refuse what is not finite, symmetric and semi-definite, with its place."""
    d, comm = mesh.geometry.dim, mesh.comm
    inside = basix.make_quadrature(cell_type(mesh), max(2, min(degree, 4)))[0]
    # D alone is also looked at in the vertices: it may vanish along lines that the mesh follows
    points = np.concatenate([inside, basix.geometry(cell_type(mesh))])
    row = [*ufl.SpatialCoordinate(mesh), abs(ufl.JacobianDeterminant(mesh)), *coefficients.beta]
    table = values(mesh, [*row, *(coefficients.D[i, j] for i in range(d) for j in range(d))], points)
    within = table[:, : len(inside)].reshape(-1, table.shape[2])
    x, detJ, beta, D = np.split(within, [d, d + 1, 2 * d + 1], axis=1)
    D = D.reshape(-1, d, d)
    finite = np.isfinite(within).all(axis=1)
    agree(comm, _describe(x, ~finite, "the drift, the diffusion or the loss is not finite (NaN or inf)"))
    scale = largest(comm, np.abs(D), 0.0) or 1.0
    skew = np.abs(D - D.transpose(0, 2, 1)).max(axis=(1, 2), initial=0.0) > 1e-10 * scale
    agree(comm, _describe(x, skew, "the diffusion matrix is not symmetric:", D))
    eigenvalues = _eigenvalues(D)
    lowest = eigenvalues[:, 0]
    what = "the diffusion matrix is indefinite (at least 0 was expected): its smallest eigenvalue is"
    agree(comm, _describe(x, (lowest < -1e-10 * scale) & (lowest == lowest.min(initial=0.0)), what, lowest))
    speed = np.linalg.norm(beta, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = (detJ[:, 0] * np.prod(1.0 / np.arange(1, d + 1))) ** (1 / d)
        peclet = np.where(speed > 0, speed * size / (2 * degree * np.maximum(lowest, 0.0)), 0.0)
    at_corners = table[:, len(inside) :, 2 * d + 1 :].reshape(-1, d, d)
    corners = _eigenvalues(at_corners[np.isfinite(at_corners).all(axis=(1, 2))])[:, 0]
    degenerate = largest(comm, np.concatenate([lowest, corners]) <= TOLERANCE * scale, 0.0) > 0
    top, fast, cell = (largest(comm, a, 0.0) for a in (eigenvalues, speed, peclet))
    return Survey(top, fast, degenerate, float("inf") if degenerate else cell)


def check_potential(mesh: dmesh.Mesh, coefficients: Coefficients, potential: ufl.core.expr.Expr, degree: int) -> None:
    """Refuse a potential U for which e^{−U} is not invariant without current, β = −D∇U (collective)."""
    d = mesh.geometry.dim
    points = basix.make_quadrature(cell_type(mesh), max(2, min(degree, 4)))[0]
    given = -ufl.dot(coefficients.D, ufl.grad(potential))
    table = values(mesh, [*ufl.SpatialCoordinate(mesh), *coefficients.beta, *given, potential], points)
    table = table.reshape(-1, 3 * d + 1)
    x, beta, given, _ = np.split(table, [d, 2 * d, 3 * d], axis=1)
    agree(mesh.comm, _describe(x, ~np.isfinite(table).all(axis=1), "the potential or its gradient is not finite"))
    size = np.linalg.norm(beta, axis=1) + np.linalg.norm(given, axis=1)
    floor = 1e-8 * largest(mesh.comm, size, 0.0) or 1.0
    wrong = np.linalg.norm(beta - given, axis=1) > 1e-6 * np.maximum(size, floor)
    what = "the potential U does not belong to the process: [b − ∇·D, −D∇U], which should agree, are:"
    agree(mesh.comm, _describe(x, wrong, what, np.stack([beta, given], axis=1)))


def _eigenvalues(D: np.ndarray) -> np.ndarray:
    """Of many symmetric matrices, in ascending order; in closed form for 2 x 2, which takes a tenth of the time."""
    if D.shape[-1] != 2:
        return np.linalg.eigvalsh(D)
    mean, half = 0.5 * (D[:, 0, 0] + D[:, 1, 1]), 0.5 * (D[:, 0, 0] - D[:, 1, 1])
    radius = np.hypot(half, D[:, 0, 1])
    return np.stack([mean - radius, mean + radius], axis=1)


def _describe(x: np.ndarray, bad: Any, what: str, found: np.ndarray | None = None) -> str | None:
    """What is wrong at the first bad place."""
    if not bad.any():
        return None
    first = int(np.argmax(bad))
    shown = "" if found is None else f" {np.round(found[first], 12).tolist()}"
    return f"At x = ({', '.join(f'{c:.6g}' for c in x[first])}) {what}{shown}."


def across(domain: Domain, rows: Sequence[Any]) -> tuple[Array, Array, Array, Array]:
    """Centres of this rank's facets where the mesh closes, scalars on either side, their largest sizes (collective)."""
    mesh, d = domain.mesh, domain.dim
    cells, local = neighbours(mesh)
    inner = (cells >= 0).all(axis=1)
    sides = [np.stack((cells[inner, i], local[inner, i]), axis=1) for i in (0, 1)]
    a, b = (on_sides(mesh, [*ufl.SpatialCoordinate(mesh), *rows], side, 1)[0][:, 0] for side in sides)
    upper = np.asarray((a[:, :d] > b[:, :d]).any(axis=1))[:, None]
    a, b = np.where(upper, b, a), np.where(upper, a, b)
    seam = (np.abs(a[:, :d] - b[:, :d]) > 0.5 * np.nanmin(np.ptp(np.asarray(domain.periods), axis=1))).any(axis=1)
    sizes = np.array([largest(domain.comm, np.abs(column)) for column in a[:, d:].T])
    return a[seam, :d], a[seam, d:], b[seam, d:], sizes


def is_periodic(domain: Domain, scalar: Any) -> bool:
    """Whether a scalar has the periods of the domain, if that has any (collective)."""
    if domain.periods is None:
        return True
    _, a, b, size = across(domain, [scalar])
    return largest(domain.comm, np.abs(a - b), 0.0) <= PERIODIC * float(size[0])


def check_periodic(domain: Domain, coefficients: Coefficients) -> None:
    """Refuse a process that does not have the periods of its domain (collective)."""
    if domain.periods is None:
        return
    d, D = domain.dim, coefficients.D
    b = coefficients.beta if coefficients.drift is None else coefficients.drift
    names = [f"drift[{i}]" for i in range(d)] + [f"diffusion[{i}, {j}]" for i in range(d) for j in range(d)]
    x, one, other, sizes = across(domain, [*(b[i] for i in range(d)), *(D[i, j] for i in range(d) for j in range(d))])
    sizes = np.repeat([sizes[:d].max(), sizes[d:].max()], [d, d * d])
    wrong = np.argwhere(np.abs(one - other) > PERIODIC * sizes)
    problem = None
    if len(wrong):
        i, k = wrong[0]
        problem = (
            f"the domain is periodic, the process is not: its {names[k]} is {one[i, k]:.6g} on one side of "
            f"{tuple(float(f'{c:.6g}') for c in x[i])} and {other[i, k]:.6g} on the other. Formulas of the period of "
            "the domain were expected."
        )
    agree(domain.comm, problem)


class Boundary:
    """δ = n·Dn and β·n at quadrature points, of a ``degree``, of this rank's boundary facets.

    Attributes:
        facets, sides: these facets, and their cells and local numbers, shape (facets, 2).
        classes: Fichera class of each quadrature point, shape (facets, points).
        pressure: largest h min(b·n, β·n)⁺ on each facet, h the height of the cell above it, b the drift before the
            divergence of D is taken off: where only that points outwards, as with square-root noise, nothing presses.
        normals: outward, shape (facets, d).
    """

    def __init__(self, mesh: dmesh.Mesh, coefficients: Coefficients, survey: Survey, degree: int):
        self.mesh, self.degree = mesh, degree
        self.facets = dmesh.exterior_facet_indices(mesh.topology)
        self.sides = outer_sides(mesh, self.facets)
        n = ufl.FacetNormal(mesh)
        D, across = coefficients.D, ufl.dot(coefficients.beta, n)
        rows = [ufl.dot(ufl.dot(D, n), n), across, across + ufl.dot(ufl.div(D), n), *n]
        found, self.measure, height = on_sides(mesh, rows, self.sides, degree)
        tolerance = CURVED if _compat.coordinate_map(mesh).degree > 1 else TOLERANCE
        diffusive = found[..., 0] > tolerance * max(survey.diffusion, 1e-300)
        level, drift = tolerance * max(survey.drift, 1e-300), found[..., 1]
        self.classes = np.select([diffusive, drift > level, drift < -level], [0, 1, 2], default=3)
        pressing = np.minimum(drift, found[..., 2])
        self.pressure = (height * np.where(pressing > level, pressing, 0.0)).max(axis=1, initial=0.0)
        self.normals = found[:, 0, 3:]

    def classify(self, facets: np.ndarray) -> FicheraClasses:
        """Measure of each Fichera class on a set of local facets, summed over all ranks (collective)."""
        chosen = np.isin(self.facets, facets)
        local = np.bincount(self.classes[chosen].ravel(), self.measure[chosen].ravel(), minlength=4)
        return FicheraClasses(*total(self.mesh.comm, local).tolist())

    def evaluate(self, rows: list[ufl.core.expr.Expr], facets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scalars at quadrature points of some boundary facets (facets, points, rows), and weights (facets, points)."""
        return on_sides(self.mesh, rows, outer_sides(self.mesh, facets), self.degree)[:2]

    def flux(self, p: fem.Function, facets: np.ndarray, weak: WeakForm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Outflux density (β·n)⁺ p − D∇p·n + (α δ/h) p of a function, gathered on every rank: points, flux, weights."""
        D, n, d = weak.coefficients.D, ufl.FacetNormal(self.mesh), self.mesh.geometry.dim
        delta = ufl.dot(ufl.dot(D, n), n)
        local = positive(ufl.dot(weak.coefficients.beta, n)) * p - ufl.dot(ufl.dot(D, ufl.grad(p)), n)
        rows = [*ufl.SpatialCoordinate(self.mesh), local, delta * p]
        found, weights, height = on_sides(self.mesh, rows, outer_sides(self.mesh, facets), self.degree)
        flux = found[..., d] + weak.alpha * found[..., d + 1] / height
        table = np.concatenate([found[..., :d], flux[..., None], weights[..., None]], axis=2).reshape(-1, d + 2)
        table = np.concatenate(self.mesh.comm.allgather(table))
        return table[:, :d], table[:, d], table[:, d + 1]


def lacking_diffusion(boundary: Boundary, coefficients: Coefficients, absorbing: Array, degree: int) -> Array:
    """Diffusion κ n nᵀ, κ = (h q / 2 − k n·D̄n)⁺, that cells at walls lack, shape (local cells, d, d) (collective).

    D̄ is the mean over the cell: diffusion that only vanishes at the wall, linearly as that of square-root processes,
    suffices.  Cells that touch walls in a vertex or an edge only get the mean over the walls around it.
    """
    mesh, d = boundary.mesh, boundary.mesh.geometry.dim
    wanted = np.zeros((len(_compat.geometry_dofmap(mesh)), d, d))
    pressed = np.flatnonzero((boundary.pressure > 0) & ~np.isin(boundary.facets, absorbing))
    if not mesh.comm.allreduce(len(pressed)):
        return wanted
    sides, n = boundary.sides[pressed], boundary.normals[pressed]
    rows = [coefficients.D[i, j] for i in range(d) for j in range(d)]
    found, weights = at_quadrature(mesh, rows, 4, sides[:, 0])
    D = np.einsum("cq,cqi->ci", weights, found) / weights.sum(axis=1)[:, None]
    present = np.einsum("cij,ci,cj->c", D.reshape(-1, d, d), n, n)
    lacking = np.maximum(0.5 * boundary.pressure[pressed] - degree * present, 0.0)
    tensors = lacking[:, None, None] * n[:, :, None] * n[:, None, :]
    np.add.at(wanted, sides[:, 0], tensors)
    return wanted if d == 1 else _spread(mesh, wanted, sides, tensors)


def _spread(mesh: dmesh.Mesh, wanted: Array, sides: Array, tensors: Array) -> Array:
    """Give cells that only touch walls the mean over those around their vertices, as far as it acts along their own."""
    d = mesh.geometry.dim
    V = fem.functionspace(mesh, ("Lagrange", 1, (d * d + 1,)))
    around, corners = fem.Function(V), V.dofmap.list
    table = np.column_stack([tensors.reshape(-1, d * d), np.trace(tensors, axis1=1, axis2=2) > 0])
    nodes = around.x.array.reshape(-1, d * d + 1)
    for i in range(d + 1):  # the facet opposite to vertex i has the others
        opposite = np.flatnonzero(sides[:, 1] != i)
        np.add.at(nodes, corners[sides[opposite, 0], i], table[opposite])
    around.x.scatter_reverse(la.InsertMode.add)
    around.x.scatter_forward()
    touching = nodes[corners].sum(axis=1)
    mean = touching[:, :-1] / np.maximum(touching[:, -1:], 1.0)
    free = np.eye(d) - wanted @ np.linalg.pinv(wanted, rcond=1e-8, hermitian=True)  # along the cell's own walls
    spread = wanted + free @ mean.reshape(-1, d, d) @ free
    # of a ghost's own walls only its owner knows
    known = fem.Function(fem.functionspace(mesh, ("DG", 0, (d, d))))
    known.x.array[:] = spread.ravel()
    known.x.scatter_forward()
    return np.asarray(known.x.array.reshape(-1, d, d).copy())


def warn_of_added(boundary: Boundary, added: Array) -> bool:
    """Whether diffusion is added anywhere, which is warned about (collective)."""
    value = largest(boundary.mesh.comm, np.trace(added, axis1=1, axis2=2), 0.0)
    if value > 0:
        logger.warning(
            "the drift presses on a reflecting wall with less diffusion than this mesh needs there; up to %.3g is "
            "added across it in the cells at it, or modes would grow. Error bars of exit times contain what that "
            "changes; densities have none, so let there be negligible mass at the wall, or refine there.",
            value,
        )
    return value > 0
