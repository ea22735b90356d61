"""Where D jumps, or bends more sharply than the mesh resolves.

There ∇·D, taken cell by cell, is not the divergence of D: what it misses is a measure [D]n on the surface of the jump.
Green's formula tells how much: for vector fields w, linear in the cell,

    ∫_∂K Dn·w − ∫_K (∇·D)·w + D:∇w

vanishes up to quadrature where D is smooth, and is ∫ [D]n·w over the surface in K otherwise.  Nothing but values of D
and of its formal derivative is asked for, so that conditionals, kinks, tables and discontinuous functions are alike; a
jump that leaves Dn continuous, as that of kinetic noise, makes no difference to the equation and is none.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import basix
import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl.core.expr import Expr

from .._sample import Array, largest, neighbours, outer_sides, own_cells, values
from ..models.fields import Space
from ..models.process import Coefficients, Process
from .territory import Territory
from .weak import WeakForm, is_continuous

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


class Rough(NamedTuple):
    """Where coefficients jump."""

    cells: Array  #: whether D, which must be differentiated, jumps in or beside each local cell, or is not resolved
    number: int  #: of the cells on all ranks in which D or β jumps; on facets jumps cost no accuracy


def rebuilt(expression: Any) -> Any:
    """An expression as it is after numbers in it were replaced: UFL simplifies what it rebuilds, then recompiles."""
    return ufl.replace(expression, {}) if isinstance(expression, Expr) else expression


def complete(process: Process, space: Space) -> Coefficients:
    """The coefficients of a process, which know what to do where tables of D miss it (collective)."""
    found = process.coefficients(space)
    coefficients = replace(found, **{name: rebuilt(getattr(found, name)) for name in ("D", "beta", "drift")})
    if not space.inexact:
        return coefficients
    if found.drift is None:
        name, error = next(iter(space.inexact.items()))
        raise ValueError(
            f"{name}: the covariance cannot be tabulated on this mesh, the error is {error:.2g} of the largest value. "
            f"{type(process).__name__} of this kind needs its derivatives: refine the mesh, or make the domain smaller."
        )

    def inside(degree: int) -> tuple[Any, Any]:
        exact = process.coefficients(replace(space, quadrature=degree))
        return exact.D, exact.drift

    return replace(coefficients, inside=inside)


def around(weak: WeakForm, territory: Territory, rough: Array) -> WeakForm:
    """The weak form with these rough cells, if it knows any, and with the facets at which they need terms."""
    if weak.rough is None:
        return weak
    mesh, dim = weak.mesh, weak.mesh.topology.dim
    weak.rough.x.array[:] = rough
    tags = own_cells(mesh, ghosts=True) if territory.cells is None else territory.cells.indices
    live = np.isin(np.arange(len(rough)), tags)
    cells = dmesh.meshtags(mesh, dim, tags, np.where(rough[tags], 2, 1).astype(np.int32))
    walls = outer_sides(mesh, np.setdiff1d(dmesh.exterior_facet_indices(mesh.topology), territory.stops))
    walls = walls[rough[walls[:, 0]] & live[walls[:, 0]]]
    exits, interior = territory.exits, territory.interior
    if not isinstance(exits, list):
        exits = [(1, outer_sides(mesh, territory.stops).ravel())]
    if not weak.scheme.upwind:
        pairs, local = neighbours(mesh)
        inner = (pairs >= 0).all(axis=1)
        inner &= live[pairs].all(axis=1) & rough[pairs].any(axis=1)
        interior = [(1, np.stack([pairs[inner], local[inner]], axis=2).ravel())]
    return replace(weak, cells=cells, absorbing=[*exits, (2, walls.ravel())], interior=interior)


def rough_cells(mesh: dmesh.Mesh, coefficients: Coefficients, differentiated: bool) -> Rough:
    """Where D or β jumps, for a scheme that takes ∇·D or not (collective)."""
    D, beta, d = coefficients.D, coefficients.beta, mesh.geometry.dim
    owned, cells = len(own_cells(mesh)), own_cells(mesh, ghosts=True)
    ito = differentiated and coefficients.share == 1
    if ito and coefficients.inside is not None:
        return Rough(np.ones(len(cells), bool), mesh.topology.index_map(d).size_global)
    if _is_analytic(D) and _is_analytic(beta) and is_continuous(D):
        return Rough(np.zeros(len(cells), bool), 0)
    rule = _rule(mesh.topology.cell_name())
    K, n = ufl.JacobianInverse(mesh), len(rule.points)
    row = [*ufl.SpatialCoordinate(mesh), ufl.JacobianDeterminant(mesh), *(K[i, j] for i in range(d) for j in range(d))]
    row += [*ufl.div(D), *(D[i, j] for i in range(d) for j in range(d)), *beta]
    defect, size, misfit, speed = (np.zeros(len(cells)) for _ in range(4))
    beside = []
    for some in np.array_split(cells, max(1, -(-len(cells) * n * len(row) // _NUMBERS))):
        parts = np.split(values(mesh, row, rule.points, some), np.cumsum([d, 1, d * d, d, d * d]), axis=2)
        place, J, inverse, divergence, tensor, drift = parts
        inverse, tensor = inverse.reshape(-1, n, d, d), tensor.reshape(-1, n, d, d)
        normal = np.einsum("cf,cfmj,fm->cfj", np.abs(J[:, rule.on, 0]), inverse[:, rule.on], rule.flux, optimize=True)
        defect[some] = _defects(rule, np.abs(J[..., 0]), inverse, divergence, tensor, normal)
        size[some] = np.abs(tensor).max(axis=(1, 2, 3), initial=0.0)
        inner = drift[:, rule.inside]
        misfit[some] = np.abs(inner - np.einsum("pq,cqi->cpi", rule.fit, inner)).max(axis=(1, 2), initial=0.0)
        speed[some] = np.abs(inner).max(axis=(1, 2), initial=0.0)
        across = 2.0 * tensor[:, rule.on] - tensor[:, rule.further]  # extrapolated to the facet
        beside.append((place[:, rule.on], normal, across))
    size[:] = np.maximum(size, 1e-9 * largest(mesh.comm, size, 0.0))
    speed[:] = np.maximum(speed, 1e-2 * largest(mesh.comm, speed, 0.0))
    rough = ~(defect <= TOLERANCE * size)
    within = (rough | (misfit > _MISFIT * speed))[:owned]
    x, normals, D = (np.concatenate(parts) for parts in zip(*beside, strict=True))
    rough |= _beside_jumps(mesh, x, normals, D, size)
    return Rough(rough & ito, mesh.comm.allreduce(int(within.sum())))


def _is_analytic(expression: ufl.core.expr.Expr) -> bool:
    """Whether an expression is made of what neither jumps nor bends in a cell: then nothing needs to be evaluated."""
    u = ufl.classes
    doubtful = u.Conditional | u.Abs | u.MinValue | u.MaxValue | u.Sqrt | u.Atan2 | u.Asin | u.Acos

    return not any(
        isinstance(o, doubtful | u.ExternalOperator)
        or (isinstance(o, u.Power) and not isinstance(o.ufl_operands[1], u.IntValue))
        for o in ufl.corealg.traversal.unique_pre_traversal(expression)
    )


class _Rule:
    """Points in the reference cell and beside its facets, and what integrates with them."""

    def __init__(self, name: str):
        cell = getattr(basix.CellType, name)
        vertices, topology = basix.geometry(cell), basix.topology(cell)
        d = vertices.shape[1]
        inside, self.weights = basix.make_quadrature(cell, _DEGREE[d])
        facet = (basix.CellType.point, basix.CellType.interval, basix.CellType.triangle)[d - 1]
        X, w = basix.make_quadrature(facet, _DEGREE[d]) if d > 1 else (np.zeros((1, 0)), np.ones(1))
        corners = vertices[np.array(topology[d - 1])]
        on = (corners[:, :1] + X @ (corners[:, 1:] - corners[:, :1])).reshape(-1, d)
        stretch = np.where(np.arange(d + 1) == 0, np.sqrt(d), 1.0)  # the facet opposite to vertex 0 is slanted
        flux = (stretch[:, None] * w)[..., None] * np.array(basix.cell.facet_outward_normals(cell))[:, None]
        middle = vertices.mean(axis=0)
        self.inside, self.on = slice(0, len(inside)), slice(len(inside), len(inside) + len(on))
        self.further = slice(len(inside) + len(on), None)
        shrunk = [middle + (1 - times * _SHRUNK) * (p - middle) for p, times in ((inside, 1), (on, 1), (on, 2))]
        self.points = np.concatenate(shrunk)
        legendre = basix.create_element(
            basix.ElementFamily.P, cell, _DEGREE[d] // 2 - 1, basix.LagrangeVariant.legendre, discontinuous=True
        )
        basis = legendre.tabulate(0, inside)[0, :, :, 0]
        self.fit = basis @ np.linalg.pinv(basis)  # values at the points -> those of the polynomial nearest to them
        self.weights = self.weights * (1 - _SHRUNK) ** d
        self.flux = (1 - _SHRUNK) ** (d - 1) * flux.reshape(-1, d)  # weight times normal, shape (facets * points, d)
        self.hats = np.concatenate([1 - self.points.sum(axis=1, keepdims=True), self.points], axis=1)
        self.slopes = np.concatenate([-np.ones((1, d)), np.eye(d)])


_rule = lru_cache(_Rule)


def _defects(rule: _Rule, J: Array, K: Array, divergence: Array, D: Array, normal: Array) -> Array:
    """Largest defect of Green's formula in each cell, over that of a unit tensor's flux through its facets."""
    i, hats = rule.inside, rule.hats
    volume = np.einsum("q,cq,cqk,qa->cak", rule.weights, J[:, i], divergence[:, i], hats[i], optimize=True)
    volume += np.einsum("q,cq,cqkj,cqmj,am->cak", rule.weights, J[:, i], D[:, i], K[:, i], rule.slopes, optimize=True)
    surface = np.einsum("cfkj,cfj,fa->cak", D[:, rule.on], normal, hats[rule.on], optimize=True)
    return np.abs(volume - surface).max(axis=(1, 2)) / np.abs(normal).sum(axis=(1, 2))


def _beside_jumps(mesh: dmesh.Mesh, x: Array, normal: Array, D: Array, size: Array) -> Array:
    """Cells at facets across which Dn differs, of all facets with two local cells."""
    d = mesh.geometry.dim
    x, normal, D = (v.reshape(len(v), d + 1, v.shape[1] // (d + 1), *v.shape[2:]) for v in (x, normal, D))
    mesh.topology.create_entities(d - 1)
    facets = mesh.topology.index_map(d - 1)
    cells, local = neighbours(mesh, np.arange(facets.size_local + facets.num_ghosts, dtype=np.int32))
    both = (cells >= 0).all(axis=1)
    (a, b), (i, j) = cells[both].T, local[both].T
    match = np.argmin(((x[a, i][:, :, None] - x[b, j][:, None]) ** 2).sum(axis=3), axis=2)  # either cell has its own
    n = normal[a, i] / np.linalg.norm(normal[a, i], axis=2, keepdims=True)
    difference = D[a, i] - np.take_along_axis(D[b, j], match[:, :, None, None], axis=1)
    jump = np.abs(np.einsum("fqij,fqj->fqi", difference, n)).max(axis=(1, 2), initial=0.0)
    jumps = ~(jump <= TOLERANCE * np.maximum(size[a], size[b]))
    found = np.zeros(len(size), bool)
    found[a[jumps]] = found[b[jumps]] = True
    return found
