"""Local refinement of meshes of simplices in one to three dimensions, in parallel, with curved cells and named parts.

A marked cell has all its edges bisected; then every triangle with a bisected edge has its longest edge bisected, until
nothing changes (Rivara, Int. J. Numer. Methods Eng. 20, 1984; Plaza, Carey, Appl. Numer. Math. 32, 2000).  Each cell
is cut along its bisected edges in one order, longest first with ties broken by the edge's global number, on which all
cells around an edge or a face agree; so the result conforms.  Nodes of a child are images under the map of its
parent: curved boundaries keep their curve.  The new cells are partitioned afresh, which balances the load.
"""

from collections.abc import Callable, Mapping, Sequence
from math import comb

from mpi4py import MPI

import basix
import numpy as np
import numpy.typing as npt
from dolfinx import la
from dolfinx import mesh as dmesh

from .. import _compat
from .._errors import agree, together
from .._sample import largest, outer_sides, smallest
from ._arrays import SHAPES, RawMesh, opposite
from ._periodic import on_upper_sides

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Move = Callable[[Floats], Sequence[Floats] | Floats]


def owned_cells(mesh: dmesh.Mesh, cells: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Local indices of cells that this rank owns, sorted and checked (collective)."""
    found = np.unique(np.asarray(cells).ravel())
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    problem = None
    if found.size and not np.issubdtype(found.dtype, np.integer):
        problem = f"the cells to refine must be given by their indices, got {found.dtype}"
    elif found.size and (found[0] < 0 or found[-1] >= owned):
        problem = f"cells from {found[0]} to {found[-1]} were to be refined, but this rank owns {owned} cells"
    agree(mesh.comm, problem)
    return found.astype(np.int32)


def refine(
    mesh: dmesh.Mesh,
    marked: npt.NDArray[np.int32],
    parts: Mapping[str, npt.NDArray[np.int32]],
    regions: Mapping[str, npt.NDArray[np.int32]],
    degree: int | None = None,
    move: Move | None = None,
    periods: Floats | None = None,
) -> RawMesh:
    """This rank's share of the mesh in which the marked owned cells are refined (collective).

    ``parts`` are facets and ``regions`` cells that this rank owns, ``degree`` that of the new cells' maps, by default
    the mesh's; ``move`` takes the new nodes, shape (d, n), and returns where they go.
    """
    topology, d = mesh.topology, mesh.topology.dim
    for a, b in ((d, 0), (d, 1), (2, 1), (d - 1, d), (d, d - 1)):
        if a <= d and a > 0:
            topology.create_connectivity(a, b)
    vertices = _table(topology, d, 0)
    edges = np.arange(len(vertices), dtype=np.int32)[:, None] if d == 1 else _table(topology, d, 1)
    index = topology.index_map(1)
    global_edges = index.local_to_global(np.arange(index.size_local + index.num_ghosts, dtype=np.int32))
    order, bisected = _bisected_edges(mesh, edges, global_edges, marked)
    owned = topology.index_map(d).size_local
    numbers = topology.index_map(0).local_to_global(vertices[:owned].ravel()).reshape(owned, d + 1)
    cells = cut(numbers, edges[:owned], bisected, order, global_edges, topology.index_map(0).size_global)
    cmap = _compat.coordinate_map(mesh)
    degree = degree or cmap.degree
    keys, points = nodes(
        mesh.geometry.x[_compat.geometry_dofmap(mesh)[:owned]][:, :, :d], cmap.degree, *cells, degree, cmap.variant
    )
    copy = on_upper_sides(points.reshape(-1, d), periods).reshape(*keys.shape[:2], -1)
    if move is not None:
        points = _moved(mesh.comm, points, degree, move)
        if periods is not None:
            ends = [(smallest(mesh.comm, row), largest(mesh.comm, row)) for row in points.reshape(-1, d).T]
            periods = np.where(np.isfinite(periods), ends, np.nan)
    new, x = number(mesh.comm, np.concatenate((keys, copy), axis=2), points)
    facets = {name: children(_on_cells(mesh, found), *cells[1:], new) for name, found in parts.items()}
    groups = {name: np.flatnonzero(np.isin(cells[2], found)) for name, found in regions.items()}
    return RawMesh(x, new, degree, facets, groups, periods)


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
    numbers: Ints,
    edges: npt.NDArray[np.int32],
    bisected: npt.NDArray[np.bool_],
    order: Ints,
    global_edges: Ints,
    vertices: int,
    at: Floats | None = None,
) -> tuple[Ints, Floats, Ints]:
    """Children of cells: vertices, barycentric coordinates of these in the parent, and the parent.

    From vertices ``numbers`` and ``edges`` of the cells, which edges are bisected, the longest in ``order`` first, and
    numbers that are the same everywhere: ``global_edges``, and ``vertices`` in all.  Edges are cut ``at`` a fraction of
    the way from the vertex with the lower number, or in the middle.
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
        halves = []
        for i in (0, 1):
            new, coordinates = cells[halved], bary[halved]
            new[side[i][halved]] = vertices + global_edges[edge][parent[halved]]
            coordinates[side[i][halved]] = middle
            halves.append((new, coordinates))
        cells = np.concatenate([cells[~halved], halves[0][0], halves[1][0]])
        bary = np.concatenate([bary[~halved], halves[0][1], halves[1][1]])
        parent = np.concatenate([parent[~halved], parent[halved], parent[halved]])
    return cells, bary, parent


def nodes(
    x: Floats,
    of_degree: int,
    cells: Ints,
    bary: Floats,
    parent: Ints,
    degree: int,
    variant: int = int(basix.LagrangeVariant.equispaced),
) -> tuple[Ints, Floats]:
    """Nodes of children: keys (cells, nodes, 2d + 2), equal for equal nodes, and coordinates (cells, nodes, d).

    From the nodes ``x`` (parents, nodes, d) of maps ``of_degree`` of the parents, and what :func:`cut` gives.
    """
    d = x.shape[2]
    places = lattice(d, degree)
    # a node is a weighted mean of vertices: its key has their numbers, largest first, and their weights
    weight = np.broadcast_to(np.rint(places * degree).astype(np.int64), (len(cells), *places.shape))
    who = np.where(weight > 0, cells[:, None, :], -1)
    largest = np.argsort(-who, axis=2)
    keys = np.concatenate([np.take_along_axis(values, largest, axis=2) for values in (who, weight)], axis=2)
    reference = (places @ bary)[:, :, 1:]
    if not len(cells):  # basix aborts where there is no point
        return keys, np.zeros((0, len(places), d))
    table = element(d, of_degree, basix.LagrangeVariant(variant)).tabulate(0, reference.reshape(-1, d))
    basis = table[0, :, :, 0].reshape(*reference.shape[:2], -1)
    return keys, basis @ x[parent]


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
                what = "other numbers" if given.shape == after.T.shape else f"an array of shape {given.shape}"
                raise ValueError(
                    f"the map of the nodes gave {what}; finite {len(after.T)} x {len(after)} were expected."
                )
            after = given.T
            signs = _orientations(points, degree) * _orientations(after.reshape(points.shape), degree)
    if smallest(comm, signs) * largest(comm, signs) <= 0:
        raise ValueError("the map of the nodes folds cells or makes them flat; one that keeps them apart was expected.")
    return after.reshape(points.shape)


def _orientations(nodes: Floats, degree: int) -> Floats:
    """Sign of det J of cells with nodes (cells, nodes, d), close to their vertices and at midpoints: (cells, d + 2).

    At a vertex itself it may vanish: maps that grade a mesh towards a wall may have no slope there.
    """
    d = nodes.shape[2]
    corners = basix.geometry(basix.CellType[SHAPES[d]])
    middle = corners.mean(axis=0)
    slopes = element(d, degree).tabulate(1, np.vstack([corners + 0.01 * (middle - corners), middle]))[1:, :, :, 0]
    return np.sign(np.linalg.det(np.einsum("dpn,cnx->cpxd", slopes, nodes)))


def number(comm: MPI.Comm, keys: Ints, points: Floats) -> tuple[Ints, Floats]:
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


def _on_cells(mesh: dmesh.Mesh, facets: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Which facets of this rank's cells, by the opposite vertex, are among the given ones, shape (cells, d + 1)."""
    d = mesh.topology.dim
    cells, opposite = outer_sides(mesh, facets).T
    on_part = np.zeros((mesh.topology.index_map(d).size_local, d + 1), dtype=bool)
    on_part[cells, opposite if d > 1 else 1 - opposite] = True  # the facets of an interval are its vertices
    return on_part


def children(on_part: npt.NDArray[np.bool_], bary: Floats, parent: Ints, new: Ints) -> Ints:
    """Vertices, as new nodes, of the facets into which the parents' facets ``on_part`` are divided, shape (n, d)."""
    # child facet j lies on parent facet i where the i-th barycentric coordinates of all other vertices vanish
    found, d = [], on_part.shape[1] - 1
    for others in opposite(d):
        lies = (bary[:, others] == 0).all(axis=1) & on_part[parent]
        found.append(new[lies.any(axis=1)][:, others])
    return np.concatenate(found)
