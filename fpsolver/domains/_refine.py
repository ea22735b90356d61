"""Local refinement of meshes of simplices in one to three dimensions, in parallel, with curved cells and named parts.

A marked cell has all its edges bisected; then every triangle with a bisected edge has its longest edge bisected, until
nothing changes (Rivara, Int. J. Numer. Methods Eng. 20, 1984; Plaza, Carey, Appl. Numer. Math. 32, 2000).  Each cell
is cut along its bisected edges in one order, longest first with ties broken by the edge's global number, on which all
cells around an edge or a face agree; so the result conforms.  Nodes of a child are images under the map of its
parent: curved boundaries keep their curve.  The new cells are partitioned afresh, which balances the load.
"""

from collections.abc import Callable, Mapping, Sequence
from math import comb
from typing import Any

from mpi4py import MPI

import basix
import numpy as np
import numpy.typing as npt
from dolfinx import la
from dolfinx import mesh as dmesh

from .. import _compat
from .._errors import together
from .._sample import largest, outer_sides, smallest
from ._arrays import SHAPES, RawMesh, opposite
from .regions import local_indices

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Named = Mapping[str, npt.NDArray[Any]]
Move = Callable[[Floats], Sequence[Floats] | Floats]


def refine(
    mesh: dmesh.Mesh, cells: npt.ArrayLike, parts: Named, regions: Named, degree: int | None = None,
    move: Move | None = None, periods: Floats | None = None,
) -> RawMesh:  # fmt: skip
    """This rank's share of the mesh in which some of its owned cells are refined (collective).

    ``parts`` are facets and ``regions`` cells that this rank owns, ``degree`` that of the new cells' maps, by default
    the mesh's; ``move`` takes the new nodes, shape (d, n), and returns where they go.
    """
    topology, d = mesh.topology, mesh.topology.dim
    marked = local_indices(mesh, d, cells, "what was to be refined", "owns")
    for a, b in ((d, 0), (d, 1), (2, 1), (d - 1, d), (d, d - 1)):
        if 0 < a <= d:
            topology.create_connectivity(a, b)
    vertices = _table(topology, d, 0)
    edges = np.arange(len(vertices), dtype=np.int32)[:, None] if d == 1 else _table(topology, d, 1)
    index = topology.index_map(1)
    global_edges = index.local_to_global(np.arange(index.size_local + index.num_ghosts, dtype=np.int32))
    order, bisected = _bisected_edges(mesh, edges, global_edges, marked)
    owned = topology.index_map(d).size_local
    numbers = topology.index_map(0).local_to_global(vertices[:owned].ravel()).reshape(owned, d + 1)
    children = cut(numbers, edges[:owned], bisected, order, global_edges, topology.index_map(0).size_global)
    cmap, x = _compat.coordinate_map(mesh), mesh.geometry.x[_compat.geometry_dofmap(mesh)[:owned]][:, :, :d]
    on = {}
    for name, found in parts.items():
        inside, opposite_to = outer_sides(mesh, found).T
        on[name] = np.zeros((owned, d + 1), dtype=bool)
        on[name][inside, opposite_to if d > 1 else 1 - opposite_to] = True  # the facets of an interval are vertices
    parents = element(d, cmap.degree, basix.LagrangeVariant(cmap.variant))
    return divided(mesh.comm, x, parents, children, degree or cmap.degree, on, regions, move, periods)


def divided(
    comm: MPI.Comm, x: Floats, parents: Any, children: tuple[Ints, Floats, Ints], degree: int, on: Named, groups: Named,
    move: Move | None = None, periods: Floats | None = None,
) -> RawMesh:  # fmt: skip
    """The mesh of the children that :func:`cut` gives (collective).

    From nodes ``x`` (cells, nodes, d) and element of the parents' maps, which of their facets, by the opposite vertex,
    are on each part, and the parents in each region.
    """
    cells, bary, parent = children
    keys, points = _nodes(x, parents, *children, degree)
    if periods is not None:  # a node and its copy on the other side are two
        upper = ends_of(points.reshape(-1, points.shape[2]), periods)[:, :, 1].reshape(points.shape)
        keys = np.concatenate((keys, upper), axis=2, dtype=np.int64)
    if move is not None:
        points = _moved(comm, points, degree, move)
        if periods is not None:
            ends = [(smallest(comm, row), largest(comm, row)) for row in points.reshape(-1, points.shape[2]).T]
            periods = np.where(np.isfinite(periods), ends, np.nan)
    new, at = _number(comm, keys, points)
    # child facet j lies on parent facet i where the i-th barycentric coordinates of all other vertices vanish
    sides = [(new[:, others], (bary[:, others] == 0).all(axis=1)) for others in opposite(cells.shape[1] - 1)]
    facets = {
        name: np.concatenate([vertices[(lies & mine[parent]).any(axis=1)] for vertices, lies in sides])
        for name, mine in on.items()
    }
    inside = {name: np.flatnonzero(np.isin(parent, rows)) for name, rows in groups.items()}
    return RawMesh(at, new, degree, facets, inside, periods)


def _table(topology: dmesh.Topology, a: int, b: int) -> npt.NDArray[np.int32]:
    connectivity = topology.connectivity(a, b)
    return connectivity.array.reshape(connectivity.num_nodes, comb(a + 1, b + 1))  # also on a rank without cells


def _bisected_edges(
    mesh: dmesh.Mesh, edges: npt.NDArray[np.int32], global_edges: Ints, marked: npt.NDArray[np.int32]
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Rank of each local edge in the common order, shortest first, and whether it is bisected (collective)."""
    topology, d = mesh.topology, mesh.topology.dim
    length = la.vector(topology.index_map(1))
    corners = mesh.geometry.x[_compat.geometry_dofmap(mesh)[:, : d + 1]]
    pairs = local_edges(d)
    square = ((corners[:, pairs[:, 0]] - corners[:, pairs[:, 1]]) ** 2).sum(axis=2)
    length.array[edges.ravel()] = square.ravel()
    length.scatter_forward()  # bit for bit the same on all ranks
    order = np.empty(len(length.array), dtype=np.int64)
    order[np.lexsort((global_edges, length.array))] = np.arange(len(order))
    bisected = la.vector(topology.index_map(1))
    bisected.array[edges[marked].ravel()] = 1.0
    triangles = _table(topology, 2, 1) if d > 1 else edges
    longest = triangles[np.arange(len(triangles)), np.argmax(order[triangles], axis=1)]
    owned, before = topology.index_map(1).size_local, -1
    while True:
        bisected.scatter_reverse(la.InsertMode.add)
        bisected.scatter_forward()
        bisected.array[:] = bisected.array > 0
        count = mesh.comm.allreduce(int(bisected.array[:owned].sum()), op=MPI.SUM)
        if count == before:
            return order, bisected.array > 0
        before = count
        bisected.array[longest[(bisected.array[triangles] > 0).any(axis=1)]] = 1.0


def local_edges(d: int) -> Ints:
    """Vertices of the edges of the reference simplex."""
    return np.array(basix.topology(basix.CellType[SHAPES[d]])[1])


def cut(
    numbers: Ints, edges: npt.NDArray[np.int32], bisected: npt.NDArray[np.bool_], order: Ints, global_edges: Ints,
    vertices: int, at: Floats | None = None,
) -> tuple[Ints, Floats, Ints]:  # fmt: skip
    """Children of cells: vertices, barycentric coordinates of these in the parent, and the parent.

    From vertices ``numbers`` and ``edges`` of the cells, which edges are cut, the longest in ``order`` first, ``at``
    what fraction of the way from the vertex with the lower number, and numbers that are the same on all ranks.
    """
    d = numbers.shape[1] - 1
    cells, parent = numbers.copy(), np.arange(len(numbers))
    bary = np.broadcast_to(np.eye(d + 1), (len(numbers), d + 1, d + 1)).copy()
    turns = np.argsort(-order[edges], axis=1)
    for turn in range(edges.shape[1]):
        local = turns[:, turn]
        edge = edges[np.arange(len(edges)), local]
        ends = np.take_along_axis(numbers, local_edges(d)[local], axis=1)
        side = [cells == ends[parent, i, None] for i in (0, 1)]
        halved = bisected[edge][parent] & side[0].any(axis=1) & side[1].any(axis=1)
        t = np.full(int(halved.sum()), 0.5) if at is None else at[edge][parent[halved]]
        first = np.where(ends[parent[halved], 0] < ends[parent[halved], 1], 1.0 - t, t)[:, None]
        middle = first * bary[halved][side[0][halved]] + (1.0 - first) * bary[halved][side[1][halved]]
        new, coordinates = ([values[~halved], values[halved], values[halved]] for values in (cells, bary))
        for i in (0, 1):
            new[1 + i][side[i][halved]] = vertices + global_edges[edge][parent[halved]]
            coordinates[1 + i][side[i][halved]] = middle
        cells, bary = np.concatenate(new), np.concatenate(coordinates)
        parent = np.concatenate([parent[~halved], parent[halved], parent[halved]])
    return cells, bary, parent


def _nodes(x: Floats, parents: Any, cells: Ints, bary: Floats, parent: Ints, degree: int) -> tuple[Ints, Floats]:
    """Nodes of children: keys (cells, nodes, 2d + 2), equal for equal nodes, and coordinates (cells, nodes, d)."""
    d = x.shape[2]
    places = lattice(d, degree)
    # a node is a weighted mean of vertices: its key has their numbers, largest first, and their weights
    weight = np.broadcast_to(np.rint(places * degree).astype(np.int64), (len(cells), *places.shape))
    who = np.where(weight > 0, cells[:, None, :], -1)
    first = np.argsort(-who, axis=2)
    keys = np.concatenate([np.take_along_axis(values, first, axis=2) for values in (who, weight)], axis=2)
    reference = (places @ bary)[:, :, 1:]
    if not len(cells):  # basix aborts where there is no point
        return keys, np.zeros((0, len(places), d))
    table = parents.tabulate(0, reference.reshape(-1, d))
    return keys, table[0, :, :, 0].reshape(*reference.shape[:2], -1) @ x[parent]


def lattice(d: int, degree: int) -> Floats:
    """Barycentric coordinates of equispaced nodes of a simplex, in the order of the element, shape (nodes, d + 1)."""
    inside = element(d, degree).points
    return np.column_stack([1.0 - inside.sum(axis=1), inside])


def element(
    d: int, degree: int, variant: basix.LagrangeVariant = basix.LagrangeVariant.equispaced
) -> basix.finite_element.FiniteElement:
    """The Lagrange element of the map from the reference simplex."""
    return basix.create_element(basix.ElementFamily.P, basix.CellType[SHAPES[d]], degree, variant)


def _moved(comm: MPI.Comm, points: Floats, degree: int, move: Move) -> Floats:
    """Nodes of cells, shape (cells, nodes, d), where a map takes them; it may mirror all cells, not fold them."""
    after: Floats = points.reshape(-1, points.shape[2])
    signs: Floats = np.ones(1)
    with together(comm):
        if len(after):
            given = np.asarray(move(np.ascontiguousarray(after.T)), dtype=float)
            if given.shape != after.T.shape or not np.isfinite(given).all():
                raise ValueError(
                    f"the map of the nodes gave an array of shape {given.shape}; finite numbers, {len(after.T)} x "
                    f"{len(after)}, were expected."
                )
            after = given.T
            signs = _orientations(points, degree) * _orientations(after.reshape(points.shape), degree)
    if smallest(comm, signs) * largest(comm, signs) <= 0:
        raise ValueError("the map of the nodes folds cells or makes them flat; one that keeps them apart was expected.")
    return after.reshape(points.shape)


def _orientations(nodes: Floats, degree: int) -> Floats:
    """Sign of det J of cells, close to their vertices, where maps that grade may have no slope, and at midpoints."""
    d = nodes.shape[2]
    corners = basix.geometry(basix.CellType[SHAPES[d]])
    middle = corners.mean(axis=0)
    slopes = element(d, degree).tabulate(1, np.vstack([corners + 0.01 * (middle - corners), middle]))[1:, :, :, 0]
    return np.sign(np.linalg.det(np.einsum("dpn,cnx->cpxd", slopes, nodes)))


def _number(comm: MPI.Comm, keys: Ints, points: Floats) -> tuple[Ints, Floats]:
    """Number nodes with distinct keys (cells, nodes, n) from zero across ranks, and the points of a range on each."""
    shape, points = keys.shape[:2], points.reshape(-1, points.shape[2])
    unique, first, inverse = np.unique(keys.reshape(-1, keys.shape[2]), axis=0, return_index=True, return_inverse=True)
    inverse = inverse.ravel()
    mixed = (unique.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).sum(axis=1, dtype=np.uint64)
    home = ((mixed >> np.uint64(33)) % np.uint64(comm.size)).astype(np.int64)
    by_home = np.argsort(home, kind="stable")
    there = np.bincount(home, minlength=comm.size)
    here = np.empty_like(there)
    comm.Alltoall(there, here)
    received = _exchange(comm, unique[by_home], there, here)
    x = _exchange(comm, points[first][by_home], there, here)
    _, one, back = np.unique(received, axis=0, return_index=True, return_inverse=True)
    offset = sum(comm.allgather(len(one))[: comm.rank])
    answer = np.empty(len(unique), dtype=np.int64)
    answer[by_home] = _exchange(comm, (offset + back.ravel())[:, None], here, there)[:, 0]
    return answer[inverse].reshape(shape), x[one]


def _exchange(comm: MPI.Comm, rows: npt.NDArray, there: Ints, here: Ints) -> npt.NDArray:
    """Send ``there[r]`` of the rows to rank r, and receive ``here[r]`` (collective)."""
    received = np.empty((int(here.sum()), rows.shape[1]), dtype=rows.dtype)
    width = rows.shape[1]
    comm.Alltoallv([np.ascontiguousarray(rows), there * width], [received, here * width])
    return received


def ends_of(x: Floats, periods: Floats) -> npt.NDArray[np.bool_]:
    """Whether points (n, d) are at the lower and the upper end of each periodic coordinate, shape (n, d, 2)."""
    return np.abs(x[:, :, None] - periods) <= 1e-9 * np.ptp(periods, axis=1)[:, None]  # not where these are NaN
