"""The transition operator as matrices: images of many points at a time, summed into blocks of pairs of cells.

P_ij = Σ_b w_b Σ_q ω_q φ_i(x_q) φ_j(Φ_b(x_q)) and M_ij = Σ_q ω_q φ_i(x_q) φ_j(x_q) with the same points x_q, so that
P1 plus what leaves is M1 whatever the points.  The rows of a cell belong to the rank that owns it, and only that rank
makes them; memory is bounded by the matrices and one chunk of images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from petsc4py import PETSc

import numpy as np
from scipy import sparse

from .._errors import together
from ..pointwise.walls import Walls
from ._cells import Cells
from ._images import Images, Region, follow
from ._points import Points, points_in
from ._steps import Steps

Array = np.ndarray[Any, Any]
Field = Callable[[Array], Array]
BLOCKED = 7  # size of blocks, up to which PETSc multiplies parallel matrices of blocks rightly (3.22: wrong for 10)
CHUNK = 200_000  # images at a time


@dataclass(frozen=True)
class Recipe:
    """What the matrices are made from."""

    cells: Cells  #: the mesh, its boundary and the algorithm
    walls: Walls
    steps: Steps
    parts: int  #: number of absorbing parts
    regions: tuple[Region, ...]  #: further places that absorb
    basis: Callable[[Array], Array]  #: reference points (n, d) -> values of the basis of a cell (n, m)
    points: int  #: points in each cell
    finer: int  #: by how much more where an image of the cell lies astride the exit
    seed: int  #: of the points
    discount: Field | None = None  #: factor of what a step from points (n, d) is worth
    payoffs: tuple[Field | None, ...] = ()  #: for each part what leaving there is worth, by the point; one by default
    count: Array | None = None  #: points in each of this rank's cells, where known

    def samples(self) -> Iterator[Points]:
        """The points alone, some cells at a time; needs ``count``."""
        assert self.count is not None
        some = max(1, CHUNK // self.points)
        for begin in range(self.cells.begin, self.cells.end, some):
            chosen = np.arange(begin, min(begin + some, self.cells.end))
            yield points_in(self.cells, chosen, self.count[chosen - self.cells.begin], self.seed)

    def chunks(self) -> Iterator[tuple[Points, Images]]:
        """Points and images of this rank's cells, some cells at a time."""
        nb = len(self.steps.weights) * max(1, self.steps.numbers // 4)
        some = max(1, CHUNK // (nb * self.points))
        for begin in range(self.cells.begin, self.cells.end, some):
            chosen = np.arange(begin, min(begin + some, self.cells.end))
            yield from self._refined(chosen)

    def _refined(self, chosen: Array) -> Iterator[tuple[Points, Images]]:
        """The cells at hand; those that the exit's preimage crosses with more points."""
        if self.count is None:
            found = self._follow(chosen, np.full(len(chosen), self.points))
            astride = self._astride(chosen, *found) if self.finer > 1 else np.zeros(len(chosen), bool)
            if not astride.any():
                yield found
                return
            count = np.where(astride, self.finer * self.points, self.points)
        else:
            count = self.count[chosen - self.cells.begin]
        most = CHUNK // (len(self.steps.weights) * self.points * self.finer)
        size = len(chosen) if count.max() <= self.points else max(1, most)
        for begin in range(0, len(chosen), size):
            yield self._follow(chosen[begin : begin + size], count[begin : begin + size])

    def _follow(self, chosen: Array, count: Array) -> tuple[Points, Images]:
        points = points_in(self.cells, chosen, count, self.seed)
        return points, follow(self.cells, self.walls, self.steps, points, self.regions, self.parts)

    def _astride(self, chosen: Array, points: Points, images: Images) -> Array:
        """Which cells have a batch under which some points leave and others do not."""
        leaving = np.zeros(len(points.cell))
        np.add.at(leaving, images.left_source, images.left_weight)
        first = np.searchsorted(points.cell, chosen)
        low, high = np.minimum.reduceat(leaving, first), np.maximum.reduceat(leaving, first)
        return high > low + 1e-12

    def crossings(self, part: int, visits: Array) -> tuple[Array, Array]:
        """Where paths cross a part, from the expected visits of this rank's cells: points, probabilities."""
        where, share = [np.zeros((0, self.cells.dim))], [np.zeros(0)]
        for points, images in self.chunks():
            gone = images.left_part == part
            share.append(images.left_weight[gone] * self.visits(points, visits)[images.left_source[gone]])
            where.append(images.left_at[gone])
        return np.concatenate(where), np.concatenate(share)

    def visits(self, points: Points, visits: Array) -> Array:
        """Weights of points times a density, given by its coefficients in this rank's cells."""
        phi = self.basis(points.reference)
        return points.weight * (visits.reshape(-1, phi.shape[1])[points.cell - self.cells.begin] * phi).sum(axis=1)

    def pieces(self) -> "Iterator[Piece]":
        """The matrices of some cells at a time."""
        return (self._piece(points, images) for points, images in self.chunks())

    def _piece(self, points: Points, images: Images) -> "Piece":
        n = len(points.cell)
        phi = self.basis(points.reference)
        m, weighted = phi.shape[1], points.weight[:, None] * phi
        chosen, first = np.unique(points.cell, return_index=True)
        mass = np.add.reduceat(weighted[:, :, None] * phi[:, None], first)
        if self.discount is not None:
            weighted = weighted * self.discount(points.x)[:, None]
        names = self.parts + len(self.regions)
        exits = np.zeros((names, len(chosen), m))
        for part in range(names):
            these, worth = images.left_part == part, images.left_weight
            payoff = self.payoffs[part] if self.payoffs else None
            if payoff is not None and these.any():
                worth = worth.copy()
                worth[these] *= payoff(images.left_at[these])
            share = np.bincount(images.left_source[these], worth[these], n)
            exits[part] = np.add.reduceat(share[:, None] * weighted, first)
        order = np.argsort(images.source, kind="stable")
        source = images.source[order]
        values = images.weight[order, None] * self.basis(images.reference[order])
        offsets = np.searchsorted(source, np.arange(n + 1))
        shape = (n, self.cells.size * m)
        right = sparse.bsr_array((values[:, None], images.cell[order], offsets), shape=shape, blocksize=(1, m))
        column = np.concatenate((first, [n]))
        shape = (len(chosen) * m, n)
        left = sparse.bsr_array((weighted[:, :, None], np.arange(n), column), shape=shape, blocksize=(m, 1))
        count, number = np.diff(column), len(images.source) + len(images.left_source)
        return Piece(chosen, mass, exits, left @ right, count, number, images.mirrored)


@dataclass(frozen=True)
class Piece:
    """Block rows of some cells: their numbers (c,), masses (c, m, m), exits (parts, c, m), transitions, points (c,)."""

    cells: Array
    mass: Array
    exits: Array
    rows: Any
    count: Array
    images: int
    mirrored: float


@dataclass(frozen=True)
class Assembled:
    """Matrices and vectors of a chain."""

    M: PETSc.Mat  #: mass matrix, block diagonal
    inverse: PETSc.Mat  #: of M
    P: PETSc.Mat  #: transition matrix
    exits: tuple[PETSc.Vec, ...]  #: for each part and region Σ_b w_b Σ_q ω_q φ_i(x_q) over the images that leave there
    images: int  #: number of images of all ranks
    mirrored: float  #: share of the probability that walls sent back, for a uniform start
    count: Array  #: number of points in each of this rank's cells


def assemble(recipe: Recipe, comm: Any) -> Assembled:
    """Make the matrices (collective)."""
    cells, names = recipe.cells, recipe.parts + len(recipe.regions)
    m = recipe.basis(np.zeros((1, cells.dim))).shape[1]
    owned = cells.end - cells.begin
    rows, mass, exits = [], np.zeros((owned, m, m)), np.zeros((names, owned, m))
    number, count, mirrored = 0, np.zeros(owned, int), 0.0
    with together(comm):
        for piece in recipe.pieces():
            first = piece.cells - cells.begin
            mass[first], exits[:, first], count[first] = piece.mass, piece.exits, piece.count
            rows.append(piece.rows)
            number += piece.images
            mirrored += piece.mirrored
    number, mirrored = comm.allreduce(number), comm.allreduce(mirrored)
    n, size = owned * m, cells.size * m
    local = np.arange(owned + 1, dtype=PETSc.IntType)
    diagonal = local[:-1] + cells.begin
    P = _matrix(comm, (n, size), m, *_joined(rows, owned, m))
    M = _matrix(comm, (n, size), m, local, diagonal, mass)
    inverse = _matrix(comm, (n, size), m, local, diagonal, np.linalg.inv(mass) if owned else mass)
    vectors = []
    for values in exits:
        vector = P.createVecLeft()
        vector.array_w = values.ravel()
        vectors.append(vector)
    whole = float(cells.volumes.sum())
    return Assembled(M, inverse, P, tuple(vectors), number, mirrored / whole, count)


def _joined(rows: list[Any], owned: int, m: int) -> tuple[Array, Array, Array]:
    """Block rows of all chunks as one block matrix."""
    counts = np.concatenate([np.zeros(1, int), *(np.diff(r.indptr) for r in rows)])
    indices = np.concatenate([np.zeros(0, int), *(r.indices for r in rows)])
    data = np.concatenate([np.zeros((0, m, m)), *(r.data for r in rows)])
    rows.clear()
    offsets = np.cumsum(counts)
    row = np.repeat(np.arange(owned), np.diff(offsets))
    order = np.lexsort((indices, row))
    return offsets.astype(PETSc.IntType), indices[order].astype(PETSc.IntType), data[order]


def _matrix(comm: Any, size: tuple[int, int], m: int, offsets: Array, indices: Array, blocks: Array) -> PETSc.Mat:
    matrix = PETSc.Mat().createBAIJ((size, size), m, csr=(offsets, indices, np.ascontiguousarray(blocks)), comm=comm)
    matrix.assemble()
    if m > BLOCKED and comm.size > 1:
        matrix.convert("aij")
    return matrix


def bases(element: Any) -> Callable[[Array], Array]:
    """Values of an element's basis at reference points, of which there may be none."""

    def values(X: Array) -> Array:
        if not len(X):  # basix aborts
            return np.zeros((0, element.dim))
        return np.ascontiguousarray(element.tabulate(0, np.ascontiguousarray(X))[0, :, :, 0])

    return values
