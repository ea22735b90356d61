"""Integrals over parts of the domain that the mesh does not follow: balls, and basins of attraction.

Cells that a boundary crosses are cut into halves again and again; each of the last pieces counts with its share inside.
To the basin of a minimum belong the points that the flow of the drift, dx/dt = b(x), takes there.
"""

from collections.abc import Callable

from petsc4py import PETSc

import basix
import numpy as np
import scipy.linalg
from dolfinx import fem, la
from dolfinx import mesh as dmesh
from scipy.integrate import RK45

from ... import _compat
from ..._answer import place
from ..._errors import agree
from ..._sample import coordinate_element, largest, lattice
from ...discretisation.assembly import to_vector
from ...discretisation.generator import Generator
from ...discretisation.solution import bounds
from ..sampling import Array, directions, owned_nodes
from .contraction import drift_and_noise_at

# from the corners of pieces, shape (n, d + 1, d): the share of each region, shape (n, k), and which pieces to cut
Classify = Callable[[Array], tuple[Array, Array]]
_CHUNK = 20_000  # pieces whose basis functions are tabulated at once
_FINENESS = {1: 20, 2: 7, 3: 3}  # the last pieces at a ball are smaller than 2^-n of its radius
_STEPS = 2000
_RTOL = 1e-7  # of a step's error, relative to the extent of the domain
_LEVELS = {1: 30, 2: 7, 3: 3}
_SHRINK = 0.02  # corners are moved inwards: meshes like to have vertices on the boundaries between basins
_STILL = 1e-9  # of the largest speed: the flow has arrived, at a saddle if it was not caught


def _cut(mesh: dmesh.Mesh, classify: Classify, levels: int) -> tuple[Array, Array, Array]:
    """Pieces of own cells that touch regions: cells (n,), reference corners (n, d + 1, d), and shares (n, regions)."""
    dim = mesh.topology.dim
    X, children = lattice(dim, 2)
    barycentric = np.column_stack([1 - X.sum(axis=1), X])[children]
    nodes, element = owned_nodes(mesh), coordinate_element(mesh)
    cells: Array = np.arange(len(nodes))
    corners = np.broadcast_to(np.concatenate([np.zeros((1, dim)), np.eye(dim)]), (len(cells), dim + 1, dim))
    done: list[tuple[Array, Array, Array]] = []
    for level in range(levels + 1):
        flat = corners.reshape(-1, dim)
        table = element.tabulate(0, flat)[0] if len(flat) else flat  # basix does not take none
        table = table.reshape(*corners.shape[:2], element.dim)
        share, crossed = classify(np.einsum("nqm,nmx->nqx", table, nodes[cells]))
        crossed &= level < levels
        keep = ~crossed & (share > 0).any(axis=1)
        done.append((cells[keep], corners[keep], share[keep]))
        cells = np.repeat(cells[crossed], len(children))
        corners = np.einsum("sij,njx->nsix", barycentric, corners[crossed]).reshape(-1, dim + 1, dim)
    cells, corners, share = (np.concatenate(parts) for parts in zip(*done, strict=True))
    return cells, corners, share


def loads(
    gen: Generator, classify: Classify, levels: int, weight: Callable[[Array], Array] | None = None
) -> list[PETSc.Vec]:
    """ℓ_i = ∫ 1_A g φ_i for each region A, with a weight g of points (n, q, d), after so many cuts (collective)."""
    mesh = gen.domain.mesh
    cells, corners, share = _cut(mesh, classify, levels)
    functions = [fem.Function(gen.V) for _ in share.T]
    nodes, coordinates, dim = owned_nodes(mesh), coordinate_element(mesh), mesh.topology.dim
    X, w = basix.make_quadrature(coordinates.cell_type, gen.degree + 4)
    barycentric = np.column_stack([1 - X.sum(axis=1), X])
    for begin in range(0, len(share), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        cell, corner = cells[part], corners[part]
        flat = np.einsum("qi,nix->nqx", barycentric, corner).reshape(-1, dim)
        table = coordinates.tabulate(1, flat)[:, :, :, 0].reshape(dim + 1, len(cell), len(X), coordinates.dim)
        J = np.einsum("anqm,nmx->nqxa", table[1:], nodes[cell])
        size = np.abs(np.linalg.det(corner[:, 1:] - corner[:, :1]))
        weights = w * np.abs(np.linalg.det(J)) * size[:, None]
        if weight is not None:
            weights = weights * weight(np.einsum("nqm,nmx->nqx", table[0], nodes[cell]))
        phi = gen.V.element.basix_element.tabulate(0, flat)[0, :, :, 0].reshape(len(cell), len(X), -1)
        local = np.einsum("nq,nqi->ni", weights, phi)
        for function, inside in zip(functions, share[part].T, strict=True):
            np.add.at(function.x.array, gen.V.dofmap.list[cell], inside[:, None] * local)
    for function in functions:
        function.x.scatter_reverse(la.InsertMode.add)
    return [to_vector(gen, function) for function in functions]


def ball_load(
    gen: Generator, center: Array, radius: float, weight: Callable[[Array], Array] | None = None
) -> tuple[PETSc.Vec, PETSc.Vec]:
    """The load of a ball, extrapolated, and what the last halving of the pieces changed in it (collective)."""
    mesh = gen.domain.mesh
    extent = largest(mesh.comm, np.ptp(owned_nodes(mesh), axis=1))
    levels = max(2, int(np.ceil(np.log2(max(extent / radius, 1e-300)))) + _FINENESS[gen.domain.dim])
    curved = _compat.coordinate_map(mesh).degree > 1

    def classify(x: Array) -> tuple[Array, Array]:
        y = x - center
        corners = y.shape[1]
        squares, middle = (y**2).sum(axis=2), y.mean(axis=1)
        size = np.sqrt(((y - middle[:, None]) ** 2).sum(axis=2).max(axis=1))
        inside = np.sqrt(squares.max(axis=1)) + (0.1 * size if curved else 0.0) <= radius
        outside = np.linalg.norm(middle, axis=1) - (1.2 if curved else 1.0) * size >= radius
        # |y|² − r² by the linear function with its corner values, moved to have the same mean
        mean = (squares.sum(axis=1) + (y.sum(axis=1) ** 2).sum(axis=1)) / (corners * (corners + 1))
        share = share_below(squares + (mean - squares.mean(axis=1))[:, None] - radius**2)
        return np.where(inside, 1.0, np.where(outside, 0.0, share))[:, None], ~(inside | outside)

    (coarse,), (fine,) = (loads(gen, classify, n, weight) for n in (levels - 1, levels))
    coarse.aypx(-1.0, fine)  # fine less coarse
    fine.axpy(1 / 3, coarse)
    return fine, coarse


def share_below(g: Array) -> Array:
    """Share of a simplex where the linear function with corner values ``g``, shape (n, d + 1), is negative."""
    g = np.sort(g, axis=1)
    negative, corners = (g < 0).sum(axis=1), g.shape[1]
    share = np.where(negative == corners, 1.0, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest, highest = g[:, :1], g[:, -1:]
        share = np.where(negative == corners - 1, 1 - np.prod(highest / (highest - g[:, :-1]), axis=1), share)
        share = np.where(negative == 1, np.prod(lowest / (lowest - g[:, 1:]), axis=1), share)  # a corner is cut off
        if corners == 4:  # two corners against two: a wedge, as three tetrahedra
            ac, ad, bc, bd = (g[:, i] / (g[:, i] - g[:, j]) for i, j in ((0, 2), (0, 3), (1, 2), (1, 3)))
            share = np.where(negative == 2, ac * ad + ac * bd * (1 - ad) + (1 - ac) * bc * bd, share)
    return share


class Flow:
    """Follows the drift from many points at once to one of the minima, shape (k, d), on each rank by itself."""

    def __init__(self, gen: Generator, minima: Array):
        values, d, comm = drift_and_noise_at(gen), gen.domain.dim, gen.domain.comm
        if values is None:
            raise ValueError(
                "basins of attraction: a drift or diffusion that is tabulated (fp.batched, a Function) is not known "
                "between the points of the mesh; write it with UFL, or pass basins=False."
            )
        self.drift = lambda x: values(x)[:, :d]
        lower, upper = bounds(gen.domain.mesh)
        self.extent = float(np.linalg.norm(upper - lower))
        self.box = (lower - self.extent, upper + self.extent)
        self.still = _STILL * largest(comm, np.linalg.norm(self.drift(gen.domain.mesh.geometry.x[:, :d]), axis=1))
        self.traps = [self._trap(minima, i) for i in range(len(minima))]
        wrong = [f"minima: {place(x)} does not attract the flow of the drift" for x, _, rho in self.traps if rho == 0]
        agree(comm, f"{wrong[0]}; check that it is a minimum." if wrong else None)

    def _trap(self, minima: Array, i: int) -> tuple[Array, Array, float]:
        """A point, P and ρ: from {y·Py < ρ²}, y = x − point, the flow goes to the point; ρ = 0 if there is no such."""
        point, dim = minima[i], len(minima[i])
        others = np.linalg.norm(np.delete(minima, i, axis=0) - point, axis=1)
        P, h = np.eye(dim), 1e-5 * self.extent * np.eye(dim)
        J = (self.drift(point + h) - self.drift(point - h)).T / (2 * h[0, 0])
        if np.linalg.eigvals(J).real.max() < -1e-8 * (np.linalg.norm(J) or 1.0):
            P = scipy.linalg.solve_continuous_lyapunov(J.T, -np.eye(dim))
            P /= np.linalg.eigvalsh(P)[0]  # within distance ρ of the point
        rays = directions(dim)[:: 1 if dim < 3 else 8] @ np.linalg.inv(np.linalg.cholesky(P))
        for rho in 0.5 * float(others.min(initial=self.extent)) * 0.7 ** np.arange(30):
            y = (rho * np.linspace(1 / 16, 1, 16)[:, None, None] * rays).reshape(-1, dim)
            if (np.einsum("ni,ij,nj->n", y, P, self.drift(point + y)) < 0).all():  # inwards
                return point, P, rho
        return point, P, 0.0

    def labels(self, x: Array) -> Array:
        """Number of the minimum that each point, shape (n, d), is taken to; −1 for none."""
        label, active, x = np.full(len(x), -1), np.arange(len(x)), np.array(x)
        b = self.drift(x)
        h = 0.01 * self.extent / np.maximum(np.linalg.norm(b, axis=1), self.still)
        for _ in range(_STEPS):
            if not len(active):
                break
            h = self._step(x, b, h)
            ended = np.linalg.norm(b, axis=1) <= self.still
            ended |= ((x < self.box[0]) | (x > self.box[1])).any(axis=1)
            for number, (point, P, rho) in enumerate(self.traps):
                caught = np.einsum("ni,ij,nj->n", x - point, P, x - point) < rho**2
                label[active[caught]] = number
                ended |= caught
            active, x, b, h = active[~ended], x[~ended], b[~ended], h[~ended]
        return label

    def _step(self, x: Array, b: Array, h: Array) -> Array:
        """Advance those points whose step is accurate enough, in place; returns the next steps, one per point."""
        stages = [b]
        with np.errstate(all="ignore"):  # a step that leads to infinity is repeated with a shorter one
            for weights in [*RK45.A[1:], RK45.B]:  # Dormand and Prince's pair of orders 5 and 4
                new = x + h[:, None] * np.einsum("s,snd->nd", weights[: len(stages)], stages)
                stages.append(self.drift(new))
            error = h * np.linalg.norm(np.einsum("s,snd->nd", RK45.E, stages), axis=1)
            error = np.where(np.isfinite(error), error, np.inf)
            tolerance = _RTOL * self.extent
            good = error <= tolerance
            x[good], b[good] = new[good], stages[-1][good]
            return h * np.clip(0.9 * (tolerance / error) ** 0.2, 0.1, 5.0)


def basin_loads(gen: Generator, flow: Flow) -> tuple[list[PETSc.Vec], list[PETSc.Vec]]:
    """Loads of the basins, the last for what belongs to none, and what the last cutting changed (collective)."""

    def classify(x: Array) -> tuple[Array, Array]:
        x = x + _SHRINK * (x.mean(axis=1, keepdims=True) - x)
        found = flow.labels(x.reshape(-1, x.shape[2])).reshape(x.shape[:2])
        counts = (found[:, :, None] == np.arange(len(flow.traps))).sum(axis=1)
        some = counts.sum(axis=1)
        # what is taken to a saddle lies between basins: the other corners decide
        share = np.column_stack([counts / np.maximum(some, 1)[:, None], some == 0])
        return share, (counts > 0).sum(axis=1) > 1

    levels = _LEVELS[gen.domain.dim]
    coarse, fine = (loads(gen, classify, n) for n in (levels - 1, levels))
    for a, b in zip(coarse, fine, strict=True):
        a.aypx(-1.0, b)
    return fine, coarse
