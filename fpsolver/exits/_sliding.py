"""Ways along walls in the control graph: a process that drift presses on a reflecting wall slides along it.

On a wall without diffusion across it, from which the drift does not lead away, it moves with the drift's part along
the wall, β − (β·n) n, and crosses from one wall facet to the next through what they share: a vertex in the plane, an
edge in space, or along an edge between two walls through its end.  The cells at both need not share a facet.  These
vertices and edges are nodes of the graph.  One leads to a cell if the drift there, freed of its parts into the cell's
own walls, points into the cell, or if noise crosses its facets.
"""

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem, la

from .. import _compat
from .._sample import on_sides, outer_sides
from ..discretisation.boundary import CURVED
from ..discretisation.generator import Generator

Array = npt.NDArray[Any]

_PROJECTIONS = 20  # onto the walls of one cell, in turn


def sliding(gen: Generator, lives: Array) -> tuple[Array, Array]:
    """Further edges of the control graph of the cells ``lives``, and nodes that exits touch (collective)."""
    mesh, d = gen.domain.mesh, gen.domain.dim
    facets = np.setdiff1d(gen.boundary.facets, gen.territory.stops)
    sides = outer_sides(mesh, facets)
    sides = sides[lives[sides[:, 0]]]
    walls = Sides.of(gen, sides)
    pressed = np.asarray((walls.drifts & ~walls.diffuses).any(axis=1))
    if d == 1 or not mesh.comm.allreduce(int(pressed.sum())):
        return np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    names = _Names.of(mesh)
    along = _along(gen, walls.only(pressed), names)
    into, exits = _into(gen, _touching(mesh, sides[pressed]), lives, names)
    return np.concatenate([along, into]), exits


class _Names(NamedTuple):
    """Global numbers of the graph's nodes: of local cells, of their edges in space, and of their vertices."""

    cells: Array
    edges: Array
    vertices: Array

    @classmethod
    def of(cls, mesh: Any) -> "_Names":
        d, begin, tables = mesh.topology.dim, 0, []
        for dim in (d, 1, 0):
            mesh.topology.create_entities(dim)
            mesh.topology.create_connectivity(d, dim)
            index = mesh.topology.index_map(dim)
            count = index.size_local + index.num_ghosts
            own = begin + index.local_to_global(np.arange(count, dtype=np.int32)).astype(np.int64)
            if dim < d:
                links = mesh.topology.connectivity(d, dim)
                own = own[links.array.reshape(links.num_nodes, -1)]
            tables.append(own)
            begin += index.size_global
        return cls(*tables)

    def shared(self, cells: Array, vertices: tuple[int, ...]) -> Array:
        """The node that stands for a vertex, or for the edge between two vertices, of each cell."""
        if len(vertices) == 1:
            return np.asarray(self.vertices[cells, vertices[0]])
        number = {(2, 3): 0, (1, 3): 1, (1, 2): 2, (0, 3): 3, (0, 2): 4, (0, 1): 5}[vertices]  # type: ignore[index]
        return np.asarray(self.edges[cells, number])


class Sides(NamedTuple):
    """What happens at quadrature points of facets, seen from a cell."""

    sides: Array  #: cells and local facets, shape (n, 2)
    normal: Array  #: n and β, shape (n, points, d)
    drift: Array
    diffusion: Array  #: D, shape (n, points, d, d)
    diffuses: Array  #: whether noise crosses the facet, whether the drift leads out, shape (n, points)
    drifts: Array
    small: Array  #: below which diffusion and drift count as none, shape (n, points)
    slow: Array

    @classmethod
    def of(cls, gen: Generator, sides: Array) -> "Sides":
        D, beta, n, d = gen.coefficients.D, gen.coefficients.beta, ufl.FacetNormal(gen.domain.mesh), gen.domain.dim
        rows = [*n, *beta, *(D[i, j] for i in range(d) for j in range(d))]
        values, _, _ = on_sides(gen.domain.mesh, rows, sides, 2 * gen.degree)
        normal, drift = values[..., :d], values[..., d : 2 * d]
        diffusion = values[..., 2 * d :].reshape(*values.shape[:2], d, d)
        # relative to what is there, as meshes may be graded by decades towards a point where D vanishes
        angle = 1e-12 if _compat.coordinate_map(gen.domain.mesh).degree == 1 else CURVED
        size, speed = np.trace(diffusion, axis1=2, axis2=3), np.linalg.norm(drift, axis=2)
        small = np.maximum(angle * size, 1e-20 * gen.survey.diffusion)
        slow = np.maximum(angle * speed, 1e-14 * gen.survey.drift)
        diffuses = np.einsum("fqi,fqij,fqj->fq", normal, diffusion, normal) > small
        drifts = (normal * drift).sum(axis=2) > slow
        return cls(sides, normal, drift, diffusion, diffuses, drifts, small, slow)

    def only(self, chosen: Array) -> "Sides":
        return Sides(*(values[chosen] for values in self))

    def leads(self, velocity: Array, direction: Array) -> Array:
        """Whether a velocity or noise leads in a direction at some point, shape (n,)."""
        moved = np.einsum("fqi,fi->fq", velocity, direction) > self.slow
        noisy = np.einsum("fi,fqij,fj->fq", direction, self.diffusion, direction) > self.small
        return np.asarray((moved | noisy).any(axis=1))


def _along(gen: Generator, walls: Sides, names: _Names) -> Array:
    """Edges from the cells at walls to what their facets share with others, and along what two walls share."""
    mesh, d = gen.domain.mesh, gen.domain.dim
    cells, facet = walls.sides.T
    corners = mesh.geometry.x[_compat.geometry_dofmap(mesh)[cells, : d + 1]][..., :d]
    velocity = walls.drift - (walls.drift * walls.normal).sum(axis=2, keepdims=True) * walls.normal
    found: list[Array] = [np.zeros((0, 2), np.int64)]

    def link(tails: Array, heads: Array) -> None:
        found.append(np.stack([tails, heads], axis=1))

    for shared in combinations(range(d + 1), d - 1):
        for apex in set(range(d + 1)) - set(shared):  # the facet's vertex that is not shared
            (opposite,) = set(range(d + 1)) - set(shared) - {apex}
            mine = np.flatnonzero(facet == opposite)
            if not len(mine):
                continue
            some, first = walls.only(facet == opposite), corners[mine, shared[0]]
            outwards = first - corners[mine, apex]
            if d == 3:
                edge = _unit(corners[mine, shared[1]] - first)
                outwards -= (outwards * edge).sum(axis=1, keepdims=True) * edge
            there = some.leads(velocity[mine], _unit(outwards))
            node, cell = names.shared(cells[mine], shared)[there], names.cells[cells[mine]][there]
            link(cell, node)
            link(node, cell)
            for begin, end, sign in ((0, 1, 1.0), (1, 0, -1.0)) if d == 3 else ():
                moves = some.leads(velocity[mine], sign * edge)[there]
                ends = [names.shared(cells[mine], (shared[i],))[there][moves] for i in (begin, end)]
                link(node[moves], ends[1])
                link(ends[0], node[moves])
    return np.concatenate(found)


def _unit(v: Array) -> Array:
    return np.asarray(v / np.linalg.norm(v, axis=1, keepdims=True))


def _touching(mesh: Any, pressed: Array) -> Array:
    """Which vertices of each local cell lie on pressed walls, shape (cells, d + 1) (collective)."""
    V = fem.functionspace(mesh, ("Lagrange", 1))
    on, corners = fem.Function(V), V.dofmap.list
    for i in range(corners.shape[1]):  # the facet opposite to vertex i has the others
        on.x.array[corners[pressed[pressed[:, 1] != i, 0], i]] = 1.0
    on.x.scatter_reverse(la.InsertMode.add)
    on.x.scatter_forward()
    return np.asarray(on.x.array[corners] > 0)


def _into(gen: Generator, touching: Array, lives: Array, names: _Names) -> tuple[Array, Array]:
    """Edges from what walls share to this rank's cells around it, and such nodes at exits."""
    mesh, d = gen.domain.mesh, gen.domain.dim
    owned = mesh.topology.index_map(d).size_local
    cells = np.flatnonzero(touching[:owned].any(axis=1) & lives[:owned])
    every = np.stack([np.repeat(cells, d + 1), np.tile(np.arange(d + 1), len(cells))], axis=1)
    around = Sides.of(gen, every)
    mesh.topology.create_connectivity(d, d - 1)
    facets = mesh.topology.connectivity(d, d - 1).array.reshape(-1, d + 1)[cells]
    stops = np.isin(facets, gen.territory.stops)
    wall = np.isin(facets, gen.boundary.facets) & ~stops
    around = Sides(*(values.reshape(len(cells), d + 1, *values.shape[1:]) for values in around))
    normals = around.normal.mean(axis=2)
    found: list[Array] = [np.zeros((0, 2), np.int64)]
    exits: list[Array] = [np.zeros(0, np.int64)]
    for size in range(1, d):
        for shared in combinations(range(d + 1), size):
            here = touching[cells][:, shared].all(axis=1)
            node, beside = names.shared(cells, shared), [i for i in range(d + 1) if i not in shared]
            enters = here.copy()
            for i in beside:
                w = around.drift[:, i].copy()
                for _ in range(_PROJECTIONS):
                    for j in beside:
                        push = np.maximum(np.einsum("cqi,ci->cq", w, normals[:, j]), 0.0) * wall[:, j, None]
                        w -= push[..., None] * normals[:, None, j]
                inwards = np.einsum("cqi,ci->cq", w, normals[:, i]) <= around.slow[:, i]
                enters &= wall[:, i] | (inwards | around.diffuses[:, i]).any(axis=1)
                leaves = here & stops[:, i] & (around.diffuses[:, i] | around.drifts[:, i]).any(axis=1)
                exits.append(node[leaves])
            found.append(np.stack([node, names.cells[cells]], axis=1)[enters])
    return np.concatenate(found), np.concatenate(exits)
