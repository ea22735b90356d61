"""Initial densities and payoffs: what an evolution starts from, as coefficients on the generator's space.

Everything is an L² projection M p₀ = (∫ p₀ φ_i)_i, which keeps mass and, for polynomial degree k, the moments up to k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import ufl
from dolfinx import fem, la
from dolfinx import mesh as dmesh
from ufl.algorithms import estimate_total_polynomial_degree

from .. import _compat
from .._arguments import expect
from .._errors import agree
from .._log import logger
from .._petsc import LinearSolver, direct_preset
from .._sample import largest
from ..chain import Chain
from ..chain import sources as chains
from ..discretisation.assembly import assemble_vector, to_vector
from ..discretisation.generator import Generator, derived
from ..discretisation.solution import Solution, as_points, locate
from ..models.fields import Space

# (cell extent / std, quadrature degree beyond k): errors below 1e-10 for Gaussians anywhere in a cell
_QUADRATURE = ((1.0, 8), (2.0, 12), (4.0, 20), (8.0, 36))
_REACH = 9.0  # standard deviations: the density is below 1e-17 of its maximum outside


@dataclass(frozen=True)
class Gaussian:
    """Normal density with independent coordinates; see :func:`gaussian`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Dirac:
    """Unit mass at a point; see :func:`dirac`."""

    point: tuple[float, ...]


def gaussian(mean: float | Sequence[float], std: float | Sequence[float]) -> Gaussian:
    """Normal density, restricted to the domain and normalised there.

    Args:
        mean: shape (d,), in all coordinates of the domain (positions and velocities for a kinetic process).
        std: standard deviation, one number or one per coordinate.

    Raises:
        ValueError: not finite, ``std`` not positive, or of another length than ``mean``.
    """
    m, s = numbers(mean, "gaussian: mean"), numbers(std, "gaussian: std")
    wanted = f"a positive number, or {len(m)} of them (a point mass is fp.dirac(point)),"
    expect("gaussian: std", std, wanted, min(s) > 0 and len(s) in (1, len(m)))
    return Gaussian(m, s * len(m) if len(s) == 1 else s)


def dirac(point: float | Sequence[float]) -> Dirac:
    """Unit mass at ``point``, shape (d,); on a facet of a discontinuous space it is shared by the cells around it."""
    return Dirac(numbers(point, "dirac: point"))


def numbers(values: Any, what: str, wanted: str = "finite numbers, one per coordinate,") -> tuple[float, ...]:
    """A number or a sequence of finite numbers, checked."""
    try:
        array = np.atleast_1d(np.asarray(values, dtype=float))
    except (TypeError, ValueError):
        array = np.zeros(0)
    expect(what, values, wanted, array.ndim == 1 and len(array) and np.isfinite(array).all())
    return tuple(float(v) for v in array)


def coefficients(gen: Generator, source: Any, what: str, payoff: bool = False) -> PETSc.Vec:
    """Coefficients of ``source`` on ``gen.V`` as a new vector (collective).

    A ``Function`` or ``Solution`` on ``gen.V`` is taken as it is, all else is projected.  In the weighted scheme a
    density p is kept as p/w, a payoff as it is.
    """
    if isinstance(source, Solution):
        source = source.raw
    given = isinstance(source, fem.Function) and source.function_space == gen.V
    given = given and (payoff or gen.weak.scheme.unknown_is_density)
    vector = to_vector(gen, source) if given else load(gen, source, what, payoff)
    finite = np.isfinite(vector.array_r).all()
    agree(gen.domain.comm, None if finite else f"{what} is not finite on the domain.")
    if vector.norm(PETSc.NormType.NORM_INFINITY) == 0:
        raise ValueError(f"{what} is zero everywhere on the domain, and so is all that becomes of it.")
    return vector if given else project(gen, vector)


def is_density(start: Any) -> bool:
    """Whether a start is an initial density rather than points."""
    return isinstance(start, Gaussian | Dirac | fem.Function | Solution) or callable(start)


def load_density(gen: Generator | Chain, start: Any, what: str = "start") -> PETSc.Vec:
    """∫ start φ_i of one point or a density, whose sum must be one (collective)."""
    if not is_density(start):
        points = as_points(start, gen.domain.dim, what)
        expect(f"{what}: the number of points", len(points), "1, or a density,", len(points) == 1)
        start = dirac(points[0])
    source = load(gen, start, what)
    mass = float(source.sum())
    if not abs(mass - 1) < 1e-3:
        raise ValueError(f"{what}: the density has mass {mass:.6g} in the domain where 1 was expected; normalise it.")
    if isinstance(gen, Chain):
        source.scale(1.0 / mass)
    return source


def load(gen: Generator | Chain, source: Any, what: str, payoff: bool = False) -> PETSc.Vec:
    """∫ source φ_i, for a payoff with the scheme's weight; on a chain, by points of its own cells (collective)."""
    if isinstance(source, Gaussian | Dirac):
        at, name = (source.mean, "gaussian: mean") if isinstance(source, Gaussian) else (source.point, "dirac: point")
        expect(name, at, f"one of {gen.domain.dim} coordinate(s)", len(at) == gen.domain.dim)
        return _gaussian_load(gen, source) if isinstance(source, Gaussian) else _dirac_load(gen, at)
    if isinstance(source, Solution):
        source = source.raw if isinstance(gen, Chain) else source.function
    if isinstance(gen, Chain):
        if isinstance(source, fem.Function) and gen is gen.base:
            return gen.M * gen.vector(source)
        return chains.load(gen, chains.field(gen, source, what))
    mesh, k = gen.domain.mesh, gen.degree
    space = Space(mesh, k, mesh.geometry.dim)
    expression = space.scalar(source, what) + space.constant(0.0)  # UFL drops a form of 0, and its space with it
    # beyond 2k + 10 the quadrature of indicator functions and the like improves too slowly to be worth it
    degree = min(max(2 * k + 2, k + estimate_total_polynomial_degree(expression)), 2 * k + 10)
    v = ufl.TestFunction(gen.V)
    expression = gen.weak.weight * expression if payoff else expression
    return assemble_vector(gen, expression * v * ufl.dx(domain=mesh, metadata={"quadrature_degree": degree}))


def project(gen: Generator, load: PETSc.Vec) -> PETSc.Vec:
    """M⁻¹ load; on affine cells Jacobi-preconditioned M has few distinct eigenvalues, so CG needs few iterations."""
    vector = gen.G.createVecRight()
    _mass_solver(gen).solve(load, vector)
    return vector


@derived
def _mass_solver(gen: Generator) -> LinearSolver:
    preset: dict[str, Any] = {"ksp_type": "cg", "pc_type": "jacobi", "ksp_rtol": 1e-13, "ksp_max_it": 2000}
    if not gen.weak.scheme.unknown_is_density:  # weights span more decades than an iteration's norm can see
        preset = direct_preset(gen.M.comm, gen.domain.dim)
    return LinearSolver(gen.M, "fp_evolve_mass_", "L2 projection", preset)


def _gaussian_load(gen: Generator | Chain, source: Gaussian) -> PETSc.Vec:
    """∫ density φ_i over the cells near the mean, by a quadrature that resolves the density; total mass one."""
    mesh, mean, std = gen.domain.mesh, np.array(source.mean), np.array(source.std)
    nodes = mesh.geometry.x[_compat.geometry_dofmap(mesh)][:, :, : len(mean)]
    nodes = gen.cells.vertices if isinstance(gen, Chain) else nodes
    lower, upper = nodes.min(axis=1), nodes.max(axis=1)
    near = (np.maximum(np.maximum(lower - mean, mean - upper), 0.0) <= _REACH * std).all(axis=1)
    scale = float(np.prod(np.sqrt(2 * np.pi) * std))
    if isinstance(gen, Chain):
        load = chains.load(gen, lambda x: np.exp(-0.5 * (((x - mean) / std) ** 2).sum(axis=1)), near)
    else:
        cells = np.flatnonzero(near).astype(np.int32)
        ratio = largest(mesh.comm, (upper - lower)[cells] / std, 0.0)
        extra = next((q for r, q in _QUADRATURE if ratio <= r), None)
        if extra is None:
            logger.warning(
                "gaussian: the cells around the mean are %.3g standard deviations wide, which the mesh cannot tell from"
                " a point mass: fp.dirac(%s) is used. Refine there, or start later from a wider Gaussian.",
                ratio, source.mean,
            )  # fmt: skip
            return _dirac_load(gen, source.mean)
        tags = dmesh.meshtags(mesh, mesh.topology.dim, cells, np.ones(len(cells), dtype=np.int32))
        dx = ufl.Measure("dx", mesh, 1, {"quadrature_degree": gen.degree + extra}, tags)
        m, s = (fem.Constant(mesh, np.asarray(a, dolfinx.default_scalar_type)) for a in (mean, std))
        x, v = ufl.SpatialCoordinate(mesh), ufl.TestFunction(gen.V)
        exponent = sum(((x[i] - m[i]) / s[i]) ** 2 for i in range(len(mean)))
        load = assemble_vector(gen, ufl.exp(-0.5 * exponent) * v * dx)
    inside = float(load.sum()) / scale
    if not inside >= 0.5:
        raise ValueError(
            f"gaussian: only {max(inside, 0.0):.3g} of the mass of N(mean {source.mean}, std {source.std}) lies inside "
            "the domain. Move the mean, reduce std, or enlarge the domain."
        )
    if 1 - inside > 1e-6:
        level = logger.warning if 1 - inside > 1e-2 else logger.info
        level("gaussian: %.2g of its mass lies outside the domain; the rest is normalised to one", 1 - inside)
    load.scale(1.0 / (scale * inside))
    return load


def _dirac_load(gen: Generator | Chain, point: Sequence[float]) -> PETSc.Vec:
    """φ_i(point), averaged over the cells that contain the point."""
    mesh = gen.domain.mesh
    x = as_points([point], mesh.geometry.dim, "dirac: point")
    if isinstance(gen, Chain):
        return gen.dirac(x[0])
    _, cells = locate(mesh, x, "dirac: point")
    total = mesh.comm.allreduce(len(cells), op=MPI.SUM)
    function = fem.Function(gen.V)
    cmap, geometry = _compat.coordinate_map(mesh), _compat.geometry_dofmap(mesh)
    for cell in cells:  # one, or the few around a facet, edge or vertex
        nodes = mesh.geometry.x[geometry[cell]][:, : mesh.geometry.dim]
        X = cmap.pull_back(x.copy(), nodes.copy())
        function.x.array[gen.V.dofmap.cell_dofs(cell)] += gen.V.ufl_element().tabulate(0, X)[0, 0] / total
    function.x.scatter_reverse(la.InsertMode.add)
    return to_vector(gen, function)
