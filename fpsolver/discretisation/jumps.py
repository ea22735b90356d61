"""Where D jumps, or bends more sharply than the mesh resolves.

There ∇·D, taken cell by cell, is not the divergence of D: what it misses is a measure [D]n on the surface of the jump.
Green's formula tells how much: for vector fields w, linear in the cell,

    ∫_∂K Dn·w − ∫_K (∇·D)·w + D:∇w

vanishes up to quadrature where D is smooth, and is ∫ [D]n·w over the surface in K otherwise.  Nothing but values of D
and of its formal derivative is asked for, so that conditionals, kinks, tables and discontinuous functions are alike; a
jump that leaves Dn continuous, as that of kinetic noise, makes no difference to the equation and is none.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from mpi4py import MPI

import basix
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh

from .. import _compat
from ..models.fields import Space
from ..models.process import Coefficients, Process
from .facets import neighbours
from .schemes.weak import WeakForm, is_continuous
from .territory import Territory

TOLERANCE = 1e-6  # of D in the cell; Gauss' rule meets it for a step 1 + tanh(x/w) in cells up to 2w wide
_MISFIT = 0.1  # of β in the cell; what polynomials leave of a jump is a fifth or more, of a kink a twentieth
_DEGREE = {1: 10, 2: 10, 3: 6}
# cells are looked at a little inside of their facets, on which a jump may lie; FFCx takes coordinates within 1e-6 of a
# vertex for the vertex
_SHRUNK = 1e-5
_NUMBERS = 2**23  # evaluated at a time


def midpoints(mesh: dmesh.Mesh, coefficients: Coefficients) -> fem.Function | None:
    """Midpoints of the cells as cell data, None where coefficients cannot jump."""
    if _is_analytic(coefficients.D) and _is_analytic(coefficients.beta):
        return None
    d = mesh.geometry.dim
    middle = fem.Function(fem.functionspace(mesh, ("DG", 0, (d,))))
    middle.interpolate(lambda x: x[:d])
    return middle


@dataclass(frozen=True)
class Rough:
    """Where coefficients jump.

    Attributes:
        cells: whether D, which must be differentiated, jumps in or beside each local cell, or is not resolved there.
        count: of the cells on all ranks in which D or β jumps; on facets jumps cost no accuracy.
    """

    cells: npt.NDArray[np.bool_]
    count: int


def complete(process: Process, space: Space) -> Coefficients:
    """The coefficients of a process, which know what to do where tables of D miss it (collective).

    Raises:
        ValueError: nothing can be done.
    """
    coefficients = process.coefficients(space)
    if not space.inexact:
        return coefficients
    if process.inside(space) is None:
        name, error = next(iter(space.inexact.items()))
        raise ValueError(
            f"{name}: the covariance cannot be tabulated on this mesh, the error is {error:.2g} of the largest value. "
            f"{type(process).__name__} of this kind needs its derivatives: refine the mesh, or make the domain smaller."
        )

    def inside(degree: int) -> tuple[Any, Any]:
        found = process.inside(space.at_quadrature(degree))
        assert found is not None
        return found

    return replace(coefficients, inside=inside)


def around(weak: WeakForm, territory: Territory, rough: npt.NDArray[np.bool_]) -> WeakForm:
    """The weak form with these rough cells, and with the facets at which they need terms of their own."""
    mesh, dim = weak.mesh, weak.mesh.topology.dim
    weak.rough.x.array[:] = rough
    live = np.ones(len(rough), bool)
    if territory.cells is not None:
        live[:] = False
        live[territory.cells.indices] = True
    tags = np.flatnonzero(live).astype(np.int32)
    cells = dmesh.meshtags(mesh, dim, tags, np.where(rough[tags], 2, 1).astype(np.int32))
    outer = np.setdiff1d(dmesh.exterior_facet_indices(mesh.topology), territory.stops)
    beside, local = neighbours(mesh, outer)
    chosen = rough[beside[:, 0]] & live[beside[:, 0]]
    walls = np.stack([beside[chosen, 0], local[chosen, 0]], axis=1).astype(np.int32).ravel()
    stops, local = neighbours(mesh, territory.stops)
    exits = territory.exits
    if not isinstance(exits, list):
        exits = [(1, np.stack([stops[:, 0], local[:, 0]], axis=1).astype(np.int32).ravel())]
    interior = territory.interior
    if not weak.scheme.upwind:
        pairs, local = neighbours(mesh)
        inner = (pairs >= 0).all(axis=1)
        inner &= live[pairs].all(axis=1) & rough[pairs].any(axis=1)
        quadruples = np.stack([pairs[inner, 0], local[inner, 0], pairs[inner, 1], local[inner, 1]], axis=1)
        interior = [(1, quadruples.astype(np.int32).ravel())]
    return replace(weak, cells=cells, absorbing=[*exits, (2, walls)], interior=interior)


def rough_cells(mesh: dmesh.Mesh, coefficients: Coefficients, differentiated: bool) -> Rough:
    """Where D or β jumps (collective).

    Args:
        mesh: the mesh.
        coefficients: D and β.
        differentiated: whether the scheme takes ∇·D.
    """
    D, beta, d = coefficients.D, coefficients.beta, mesh.geometry.dim
    index = mesh.topology.index_map(d)
    cells = np.arange(index.size_local + index.num_ghosts, dtype=np.int32)
    ito = differentiated and coefficients.share == 1
    if ito and coefficients.inside is not None:
        return Rough(np.ones(len(cells), bool), index.size_global)
    if _is_analytic(D) and _is_analytic(beta) and is_continuous(D):
        return Rough(np.zeros(len(cells), bool), 0)
    rule = _rule(mesh.topology.cell_name())
    K, n = ufl.JacobianInverse(mesh), len(rule.points)
    row = [*ufl.SpatialCoordinate(mesh), ufl.JacobianDeterminant(mesh), *(K[i, j] for i in range(d) for j in range(d))]
    row += [*ufl.div(D), *(D[i, j] for i in range(d) for j in range(d)), *beta]
    expression = fem.Expression(ufl.as_vector(row), rule.points)
    defect, size, misfit, speed = (np.zeros(len(cells)) for _ in range(4))
    x, across = [], []
    chunk = max(1, _NUMBERS // (n * len(row)))
    for some in np.array_split(cells, max(1, -(-len(cells) // chunk))):
        values = expression.eval(mesh, some).reshape(len(some), n, len(row))
        place, J, inverse, divergence, tensor, drift = np.split(values, np.cumsum([d, 1, d * d, d, d * d]), axis=2)
        inverse, tensor = inverse.reshape(-1, n, d, d), tensor.reshape(-1, n, d, d)
        defect[some] = _defects(rule, np.abs(J[..., 0]), inverse, divergence, tensor)
        size[some] = np.abs(tensor).max(axis=(1, 2, 3), initial=0.0)
        inner = drift[:, rule.inside]
        misfit[some] = np.abs(inner - np.einsum("pq,cqi->cpi", rule.fit, inner)).max(axis=(1, 2), initial=0.0)
        speed[some] = np.abs(inner).max(axis=(1, 2), initial=0.0)
        x.append(place[:, rule.on_facets])
        across.append(2.0 * tensor[:, rule.on_facets] - tensor[:, rule.further])  # extrapolated to the facet
    floors = [mesh.comm.allreduce(float(a.max(initial=0.0)), op=MPI.MAX) for a in (size, speed)]
    size, speed = np.maximum(size, 1e-9 * floors[0]), np.maximum(speed, 1e-2 * floors[1])
    rough = ~(defect <= TOLERANCE * size)
    within = (rough | (misfit > _MISFIT * speed))[: index.size_local]
    rough |= _beside_jumps(mesh, np.concatenate(x), np.concatenate(across), size, rule)
    return Rough(rough & ito, mesh.comm.allreduce(int(within.sum())))


def _is_analytic(expression: ufl.core.expr.Expr) -> bool:
    """Whether an expression is made of what neither jumps nor bends in a cell: then nothing needs to be evaluated."""
    u = ufl.classes
    doubtful = u.Conditional | u.Abs | u.MinValue | u.MaxValue | u.Sqrt | u.Atan2 | u.Asin | u.Acos

    def is_doubtful(o: Any) -> bool:
        if isinstance(o, u.Power):
            return not isinstance(o.ufl_operands[1], u.IntValue)
        return isinstance(o, doubtful | u.ExternalOperator)

    return not any(is_doubtful(o) for o in ufl.corealg.traversal.unique_pre_traversal(expression))


class _Rule:
    """Points in the reference cell and beside its facets, and what integrates with them."""

    def __init__(self, cell_name: str):
        cell = getattr(basix.CellType, cell_name)
        vertices, topology = basix.geometry(cell), basix.topology(cell)
        d = vertices.shape[1]
        inside, self.weights = basix.make_quadrature(cell, _DEGREE[d])
        facet_cell = {1: basix.CellType.point, 2: basix.CellType.interval, 3: basix.CellType.triangle}[d]
        X, w = basix.make_quadrature(facet_cell, _DEGREE[d]) if d > 1 else (np.zeros((1, 0)), np.ones(1))
        normals = basix.cell.facet_outward_normals(cell)
        middle = vertices.mean(axis=0)
        points, flux = [], []
        for number, (corners, normal) in enumerate(zip(topology[d - 1], normals, strict=True)):
            stretch = np.sqrt(d) if number == 0 and d > 1 else 1.0  # the facet opposite to vertex 0 is slanted
            origin, *ends = vertices[corners]
            points.append(origin + X @ (np.array(ends) - origin) if d > 1 else origin[None])
            flux.append(stretch * w[:, None] * normal)
        on = np.concatenate(points)
        self.inside, self.on_facets = slice(0, len(inside)), slice(len(inside), len(inside) + len(on))
        self.further = slice(len(inside) + len(on), None)
        shrunk = [_shrink(p, middle, e) for p, e in ((inside, 1), (on, 1), (on, 2))]
        self.points = np.concatenate(shrunk)
        basis = basix.create_element(basix.ElementFamily.P, cell, _DEGREE[d] // 2 - 1, basix.LagrangeVariant.legendre,
                                     discontinuous=True).tabulate(0, inside)[0, :, :, 0]  # fmt: skip
        self.fit = basis @ np.linalg.pinv(basis)  # values at the points -> those of the polynomial nearest to them
        self.weights = self.weights * (1 - _SHRUNK) ** d
        self.flux = (1 - _SHRUNK) ** (d - 1) * np.concatenate(flux)  # weight times normal, shape (facets * points, d)
        self.per_facet = len(w)
        self.hats = np.concatenate([1 - self.points.sum(axis=1, keepdims=True), self.points], axis=1)
        self.slopes = np.concatenate([-np.ones((1, d)), np.eye(d)])


def _shrink(points: np.ndarray, middle: np.ndarray, times: int) -> np.ndarray:
    return middle + (1 - times * _SHRUNK) * (points - middle)


@lru_cache
def _rule(cell_name: str) -> _Rule:
    return _Rule(cell_name)


def _defects(rule: _Rule, J: np.ndarray, K: np.ndarray, divergence: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Largest defect of Green's formula in each cell, over that of a unit tensor's flux through its facets."""
    i, f = rule.inside, rule.on_facets
    hats = rule.hats
    volume = np.einsum("q,cq,cqk,qa->cak", rule.weights, J[:, i], divergence[:, i], hats[i], optimize=True)
    volume += np.einsum("q,cq,cqkj,cqmj,am->cak", rule.weights, J[:, i], D[:, i], K[:, i], rule.slopes, optimize=True)
    normal = np.einsum("cf,cfmj,fm->cfj", J[:, f], K[:, f], rule.flux, optimize=True)
    surface = np.einsum("cfkj,cfj,fa->cak", D[:, f], normal, hats[f], optimize=True)
    area = np.abs(normal).sum(axis=(1, 2))
    return np.abs(volume - surface).max(axis=(1, 2)) / area


def _beside_jumps(
    mesh: dmesh.Mesh, x: np.ndarray, D: np.ndarray, size: np.ndarray, rule: _Rule
) -> npt.NDArray[np.bool_]:
    """Cells at facets across which Dn differs, of all facets with two local cells."""
    d, m = mesh.geometry.dim, rule.per_facet
    x, D = x.reshape(len(x), d + 1, m, d), D.reshape(len(D), d + 1, m, d, d)
    mesh.topology.create_entities(d - 1)
    facets = mesh.topology.index_map(d - 1)
    cells, local = neighbours(mesh, np.arange(facets.size_local + facets.num_ghosts, dtype=np.int32))
    both = (cells >= 0).all(axis=1)
    (a, b), (i, j) = cells[both].T, local[both].T
    xa, xb, Da, Db = x[a, i], x[b, j], D[a, i], D[b, j]
    match = np.argmin(((xa[:, :, None] - xb[:, None]) ** 2).sum(axis=3), axis=2)  # points are numbered from either cell
    Db = np.take_along_axis(Db, match[:, :, None, None], axis=1)
    normals = _normals(mesh, a, i)
    jump = np.abs(np.einsum("fqij,fj->fqi", Da - Db, normals)).max(axis=(1, 2), initial=0.0)
    jumps = ~(jump <= TOLERANCE * np.maximum(size[a], size[b]))
    found = np.zeros(len(size), bool)
    found[a[jumps]] = found[b[jumps]] = True
    return found


def _normals(mesh: dmesh.Mesh, cells: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Unit normals of facets between the corners, up to their sign."""
    d = mesh.geometry.dim
    corners = mesh.geometry.x[_compat.geometry_dofmap(mesh)[cells][:, : d + 1]][..., :d]
    if d == 1:
        return np.ones((len(cells), 1))
    keep = np.array([[v for v in range(d + 1) if v != i] for i in range(d + 1)])[local]
    on = np.take_along_axis(corners, keep[:, :, None], axis=1)
    edges = on[:, 1:] - on[:, :1]
    n = np.stack([-edges[:, 0, 1], edges[:, 0, 0]], axis=1) if d == 2 else np.cross(edges[:, 0], edges[:, 1])
    return n / np.linalg.norm(n, axis=1, keepdims=True)
