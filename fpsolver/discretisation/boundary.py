"""Which boundary takes data: the Fichera classes of every facet, and what the process does inside the cells.

With outward normal n, δ = n·Dn and the Fichera function β·n: backward data belong where δ > 0 (diffusive) or where
δ = 0 and β·n > 0 (outflow); nothing can be imposed where δ = 0 and β·n ≤ 0 (inflow, characteristic).
Fichera (1956); Oleinik, Radkevich (1973), whose inward normal gives the opposite sign.
"""

from dataclasses import dataclass
from typing import NamedTuple

from mpi4py import MPI

import basix
import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh

from .. import _compat
from .._errors import agree
from ..models.process import Coefficients
from .facets import neighbours, on_sides
from .schemes.weak import WeakForm, positive

CURVED = 1e-6  # on curved facets: the squared error of their normals, 1e-10 to 1e-7 at h = 0.1 to 0.3 of the radius
TOLERANCE = 1e-11  # relative to the largest value on the domain; rounding of symbolic coefficients stays below 1e-13


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

    @property
    def takes_data(self) -> float:
        """Measure of where backward data can be imposed."""
        return self.diffusive + self.outflow


def format_report(report: dict[str, FicheraClasses]) -> str:
    """The boundary report as a table."""
    rows = [f"{'part':>12} {'diffusive':>10} {'outflow':>10} {'inflow':>10} {'charact.':>10}"]
    rows += [f"{name:>12} " + " ".join(f"{v:10.4g}" for v in classes) for name, classes in report.items()]
    return "\n".join(rows)


@dataclass(frozen=True)
class Survey:
    """Extremes of the coefficients over the cells, the same on all ranks.

    Attributes:
        diffusion: largest eigenvalue of D.
        drift: largest |β|.
        degenerate: whether the smallest eigenvalue of D vanishes (relatively) anywhere.
        peclet: largest |β|h / (2 k λ_min) with the cell size h and the degree k; infinite where degenerate.
    """

    diffusion: float
    drift: float
    degenerate: bool
    peclet: float


def survey_cells(mesh: dmesh.Mesh, coefficients: Coefficients, degree: int) -> Survey:
    """Evaluate D and β in every cell, and refuse what is not a diffusion (collective).

    Raises:
        ValueError: β or D not finite, D not symmetric, D indefinite; with the place and the value.
    """
    d = mesh.geometry.dim
    cell_type = getattr(basix.CellType, mesh.topology.cell_name())
    inside = basix.make_quadrature(cell_type, max(2, min(degree, 4)))[0]
    # D alone is also looked at in the vertices: it may vanish along lines that the mesh follows
    points = np.concatenate([inside, basix.geometry(cell_type)])
    J = abs(ufl.JacobianDeterminant(mesh))
    row = [
        *ufl.SpatialCoordinate(mesh),
        J,
        *coefficients.beta,
        *(coefficients.D[i, j] for i in range(d) for j in range(d)),
    ]
    owned = np.arange(mesh.topology.index_map(d).size_local, dtype=np.int32)
    table = fem.Expression(ufl.as_vector(row), points).eval(mesh, owned).reshape(len(owned), len(points), len(row))
    values = table[:, : len(inside)].reshape(-1, len(row))
    x, detJ, beta, D = (
        values[:, :d],
        values[:, d],
        values[:, d + 1 : 2 * d + 1],
        values[:, 2 * d + 1 :].reshape(-1, d, d),
    )
    finite = np.isfinite(values).all(axis=1)
    agree(mesh.comm, _describe(x, ~finite, "the drift, the diffusion or the loss is not finite (NaN or inf)"))
    scale = _maximum(mesh.comm, np.abs(D)) or 1.0
    skew = np.abs(D - D.transpose(0, 2, 1)).max(axis=(1, 2), initial=0.0) > 1e-10 * scale
    agree(mesh.comm, _describe(x, skew, "the diffusion matrix is not symmetric", D))
    lowest, highest = _extreme_eigenvalues(D)
    what = "the diffusion matrix is indefinite: its smallest eigenvalue is {:.6g} where at least 0 was expected"
    agree(mesh.comm, _describe(x, lowest < -1e-10 * scale, what, lowest))
    speed = np.linalg.norm(beta, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = (detJ * np.prod(1.0 / np.arange(1, d + 1))) ** (1 / d)
        peclet = np.where(speed > 0, speed * size / (2 * degree * np.maximum(lowest, 0.0)), 0.0)
    corners = table[:, len(inside) :, 2 * d + 1 :].reshape(-1, d, d)
    corners = corners[np.isfinite(corners).all(axis=(1, 2))]
    vanishing = np.concatenate([lowest, _extreme_eigenvalues(corners)[0]]) <= TOLERANCE * scale
    degenerate = _maximum(mesh.comm, vanishing.astype(float)) > 0
    top, fast, cell = (_maximum(mesh.comm, a) for a in (highest, speed, peclet))
    return Survey(top, fast, degenerate, float("inf") if degenerate else cell)


def check_potential(mesh: dmesh.Mesh, coefficients: Coefficients, potential: ufl.core.expr.Expr, degree: int) -> None:
    """Refuse a potential U for which e^{−U} is not invariant without current, β = −D∇U (collective).

    Raises:
        ValueError: with the place where they differ most, relatively.
    """
    d = mesh.geometry.dim
    points = basix.make_quadrature(getattr(basix.CellType, mesh.topology.cell_name()), max(2, min(degree, 4)))[0]
    given = -ufl.dot(coefficients.D, ufl.grad(potential))
    row = ufl.as_vector([*ufl.SpatialCoordinate(mesh), *coefficients.beta, *given, potential])
    owned = np.arange(mesh.topology.index_map(d).size_local, dtype=np.int32)
    values = fem.Expression(row, points).eval(mesh, owned).reshape(-1, 3 * d + 1)
    x, beta, given = values[:, :d], values[:, d : 2 * d], values[:, 2 * d : 3 * d]
    agree(mesh.comm, _describe(x, ~np.isfinite(values).all(axis=1), "the potential or its gradient is not finite"))
    size = np.linalg.norm(beta, axis=1) + np.linalg.norm(given, axis=1)
    floor = 1e-8 * _maximum(mesh.comm, size) or 1.0
    wrong = np.linalg.norm(beta - given, axis=1) > 1e-6 * np.maximum(size, floor)
    what = "the potential U does not belong to the process: [b − ∇·D, −D∇U], which should agree, are"
    agree(mesh.comm, _describe(x, wrong, what, np.stack([beta, given], axis=1)))


def _maximum(comm: MPI.Comm, values: np.ndarray) -> float:
    return float(comm.allreduce(float(np.max(values, initial=0.0)), op=MPI.MAX))


def _extreme_eigenvalues(D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest eigenvalue of many symmetric matrices, in closed form up to 2 x 2."""
    if D.shape[-1] == 1:
        return D[:, 0, 0], D[:, 0, 0]
    if D.shape[-1] == 2:
        mean, half = 0.5 * (D[:, 0, 0] + D[:, 1, 1]), 0.5 * (D[:, 0, 0] - D[:, 1, 1])
        radius = np.hypot(half, D[:, 0, 1])
        return mean - radius, mean + radius
    eigenvalues = np.linalg.eigvalsh(D)
    return eigenvalues[:, 0], eigenvalues[:, -1]


def _describe(x: np.ndarray, bad: np.ndarray, what: str, values: np.ndarray | None = None) -> str | None:
    if not bad.any():
        return None
    first = int(np.argmax(bad))
    place = "(" + ", ".join(f"{c:.6g}" for c in x[first]) + ")"
    if values is not None and values.ndim == 1:
        first = int(np.argmin(values))
        place = "(" + ", ".join(f"{c:.6g}" for c in x[first]) + ")"
        return f"At x = {place} " + what.format(values[first]) + "."
    return f"At x = {place} {what}" + (f": {values[first].tolist()}." if values is not None else ".")


class Boundary:
    """δ = n·Dn and β·n at quadrature points of this rank's boundary facets.

    Args:
        mesh: dolfinx mesh.
        coefficients: D and β.
        survey: scales of the coefficients.
        degree: quadrature degree along the facets.

    Attributes:
        facets: this rank's boundary facets.
        classes: Fichera class of each quadrature point, shape (facets, points).
        pressure: largest h min(b·n, β·n)⁺ on each facet, h the height of the cell above it, b the drift before the
            divergence of D is taken off: where only that points outwards, as with square-root noise, nothing presses.
        normals: outward, shape (facets, d).
    """

    def __init__(self, mesh: dmesh.Mesh, coefficients: Coefficients, survey: Survey, degree: int):
        self.mesh, self.degree = mesh, degree
        self.facets = dmesh.exterior_facet_indices(mesh.topology)
        n = ufl.FacetNormal(mesh)
        D, across = coefficients.D, ufl.dot(coefficients.beta, n)
        rows = [ufl.dot(ufl.dot(D, n), n), across, across + ufl.dot(ufl.div(D), n), *n]
        values, self.measure, height = _on_facets(mesh, rows, self.facets, degree)
        curved = _compat.coordinate_map(mesh).degree > 1
        tolerance = CURVED if curved else TOLERANCE
        diffusive = values[..., 0] > tolerance * max(survey.diffusion, 1e-300)
        level, drift = tolerance * max(survey.drift, 1e-300), values[..., 1]
        self.classes = np.select([diffusive, drift > level, drift < -level], [0, 1, 2], default=3)
        pressing = np.minimum(drift, values[..., 2])
        self.pressure = (height * np.where(pressing > level, pressing, 0.0)).max(axis=1, initial=0.0)
        self.normals = values[:, 0, 3:]

    def classify(self, facets: np.ndarray) -> FicheraClasses:
        """Measure of each Fichera class on a set of local facets, summed over all ranks (collective)."""
        chosen = np.isin(self.facets, facets)
        local = np.bincount(self.classes[chosen].ravel(), self.measure[chosen].ravel(), minlength=4).astype(float)
        total = np.zeros(4)
        self.mesh.comm.Allreduce(local, total)
        return FicheraClasses(*(float(t) for t in total))

    def evaluate(self, rows: list[ufl.core.expr.Expr], facets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scalars at quadrature points of some of this rank's boundary facets, not all of them constant.

        Returns:
            Values (facets, points, rows) and weights (facets, points).
        """
        return _on_facets(self.mesh, rows, facets, self.degree)[:2]

    def flux(self, p: fem.Function, facets: np.ndarray, weak: WeakForm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Outflux density (β·n)⁺ p − D∇p·n + (α δ/h) p of a function, gathered on every rank (collective).

        Returns:
            Points (n, d), flux per area (n,), weights (n,).
        """
        D, n, d = weak.coefficients.D, ufl.FacetNormal(self.mesh), self.mesh.geometry.dim
        delta = ufl.dot(ufl.dot(D, n), n)
        local = positive(ufl.dot(weak.coefficients.beta, n)) * p - ufl.dot(ufl.dot(D, ufl.grad(p)), n)
        rows = [*ufl.SpatialCoordinate(self.mesh), local, delta * p]
        values, weights, height = _on_facets(self.mesh, rows, facets, self.degree)
        flux = values[..., d] + weak.alpha * values[..., d + 1] / height
        table = np.concatenate([values[..., :d], flux[..., None], weights[..., None]], axis=2).reshape(-1, d + 2)
        table = np.concatenate(self.mesh.comm.allgather(table))
        return table[:, :d], table[:, d], table[:, d + 1]


def _on_facets(
    mesh: dmesh.Mesh, rows: list[ufl.core.expr.Expr], facets: np.ndarray, degree: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scalars at quadrature points of local boundary facets, as :func:`on_sides`."""
    cells, local = neighbours(mesh, facets)
    return on_sides(mesh, rows, np.stack([cells[:, 0], local[:, 0]], axis=1), degree)
