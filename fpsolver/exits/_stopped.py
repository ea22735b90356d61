"""Regions on a mesh, and generators whose process stops in them.

A region's cells are taken out of the forms and the facets around them become further absorbing parts, so that data act
there as on any boundary: by Nitsche's terms where the process diffuses across, by upwinding where it only drifts in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mpi4py import MPI

import basix
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem, la
from dolfinx import mesh as dmesh

from .._errors import together
from .._log import logger
from ..discretisation.assembly import basic_forms, union_tags
from ..discretisation.facets import neighbours
from ..discretisation.generator import Generator
from ..discretisation.solution import as_points
from ..domains.domain import Marker
from ..models.fields import is_number

Mask = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int32]
Region = str | Marker | tuple[Any, float]
"""A boundary part's name; a marker of points x, x[i] the i-th coordinate, as in ``Domain.mark``; or (point, radius)."""


@dataclass(frozen=True)
class Size:
    """Measure of a region: as its cells resolve it, and as it was asked for (of a boundary part both are the same)."""

    resolved: float
    asked: float


@dataclass(frozen=True)
class Resolved:
    """A region on the mesh.

    Attributes:
        name: its name.
        cells: which local cells belong to it.
        facets: local boundary facets of it, if it is a boundary part.
        point: its point, if it has one.
        size: its measure.
    """

    name: str
    cells: Mask
    facets: Integers
    point: Any
    size: Size


class Stopped(Generator):
    """A generator whose process is also stopped in regions, which count as absorbing parts (collective).

    Same function space as the original; unknowns inside the regions are idle.
    """

    def __init__(self, gen: Generator, regions: list[Resolved]):
        self.__dict__.update({k: v for k, v in gen.__dict__.items() if k not in ("cache", "_M", "G", "integrals")})
        self.regions = {r.name: r for r in regions}
        self.absorbing = tuple(dict.fromkeys([*gen.absorbing, *self.regions]))
        inside = np.logical_or.reduce([r.cells for r in regions])
        pairs, facets = neighbours(gen.domain.mesh)
        both = (pairs >= 0).all(axis=1)
        one = both & (inside[pairs[:, 0]] != inside[pairs[:, 1]])
        self._sides: dict[str, Integers] = {}
        self._stops: list[Integers] = []
        for name in self.absorbing:
            at = np.zeros(len(pairs), dtype=bool)
            own = self.regions[name].facets if name in self.regions else gen.domain.facets(name)
            at[own] = ~inside[pairs[own, 0]]
            if name in self.regions and len(own) == 0:
                at |= one & self.regions[name].cells[pairs].any(axis=1)
            chosen = np.flatnonzero(at)
            outer = np.where(inside[pairs[chosen, 0]], 1, 0)
            self._sides[name] = np.stack([pairs[chosen, outer], facets[chosen, outer]], axis=1).astype(np.int32)
            self._stops.append(chosen.astype(np.int32))
        free = both & ~inside[pairs].any(axis=1)
        quadruples = np.stack([pairs[free, 0], facets[free, 0], pairs[free, 1], facets[free, 1]], axis=1)
        outside = np.flatnonzero(~inside).astype(np.int32)
        tags = dmesh.meshtags(gen.domain.mesh, gen.domain.dim, outside, np.ones_like(outside))
        absorbing = self.facets(self.absorbing)
        weak = replace(gen.weak, cells=tags, absorbing=absorbing, interior=[(1, quadruples.astype(np.int32).ravel())])
        mass, forward, integral = basic_forms(weak, gen.V)
        self.compiled = replace(gen.compiled, weak=weak, mass=mass, forward=forward, integral=integral)
        self._assemble(gen)
        self._idle = _idle(gen, outside)
        diagonal = self.G.getDiagonal()
        diagonal.array_w[self._idle[: diagonal.local_size]] = -1.0
        self.G.setDiagonal(diagonal)
        diagonal.destroy()

    def facets(self, parts: Any) -> Any:
        """Pairs of cell and local facet, seen from where the process lives."""
        sides = [np.zeros((0, 2), np.int32), *(self._sides[part] for part in parts)]
        return [(1, np.unique(np.concatenate(sides), axis=0).ravel())]

    def absorbing_facets(self) -> np.ndarray:
        """Local indices of the facets at which the process stops."""
        return np.unique(np.concatenate(self._stops))

    def fill(self, u: fem.Function, name: str, value: float) -> None:
        """Give the unknowns inside a region a value."""
        dofs = np.unique(self.V.dofmap.list[self.regions[name].cells])
        u.x.array[dofs[self._idle[dofs]]] = value


def _idle(gen: Generator, outside: Integers) -> Mask:
    """Which local unknowns belong to no cell outside the regions, on any rank."""
    touched = fem.Function(gen.V)
    touched.x.array[np.unique(gen.V.dofmap.list[outside])] = 1.0
    touched.x.scatter_reverse(la.InsertMode.add)
    touched.x.scatter_forward()
    return touched.x.array == 0


def resolve(gen: Generator, regions: Mapping[str, Region]) -> list[Resolved]:
    """The regions on the generator's mesh: a cell belongs to one if its midpoint does (collective).

    A mesh that follows a region's boundary resolves it exactly; otherwise its size tells how well it is resolved.

    Raises:
        ValueError: unknown boundary part, a marker that fails, an empty region, two regions with a common cell.
    """
    found = [_resolve(gen, name, region) for name, region in regions.items()]
    for i, a in enumerate(found):
        for b in found[:i]:
            common = gen.domain.comm.allreduce(int((a.cells & b.cells).sum()) + len(np.intersect1d(a.facets, b.facets)))
            if common:
                raise ValueError(f"the regions {b.name!r} and {a.name!r} overlap; first passages need disjoint ones")
    return found


def _resolve(gen: Generator, name: str, region: Region) -> Resolved:
    domain, mesh = gen.domain, gen.domain.mesh
    count = mesh.topology.index_map(domain.dim)
    cells: Mask = np.zeros(count.size_local + count.num_ghosts, dtype=bool)
    facets: Integers = np.zeros(0, np.int32)
    if isinstance(region, str):
        facets = domain.facets(region)
        ds = ufl.Measure("ds", mesh, subdomain_data=union_tags(domain, (region,)), subdomain_id=1)
        area = total(gen, gen.space.constant(1.0) * ds)
        return Resolved(name, cells, facets, None, Size(area, area))
    marker, point = _marker(gen, name, region)
    x = dmesh.compute_midpoints(mesh, domain.dim, np.arange(len(cells), dtype=np.int32))[:, : domain.dim]
    points, weights = _cell_points(gen)
    with together(domain.comm):
        try:
            cells = _marked(marker, x)
            asked = float(weights[_marked(marker, points)].sum())
        except Exception as error:
            raise ValueError(f"the marker of the region {name!r} {error}") from error
    each = weights.reshape(count.size_local, len(weights) // max(count.size_local, 1))
    volume = each.sum(axis=1)[cells[: count.size_local]].sum()
    size = Size(*(domain.comm.allreduce(float(v), op=MPI.SUM) for v in (volume, asked)))
    if size.resolved == 0:
        raise ValueError(
            f"the region {name!r} is empty: it contains no cell's midpoint (volume {size.asked:.3g} was asked for). "
            "Enlarge it or refine the mesh."
        )
    if abs(size.resolved - size.asked) > 0.02 * size.asked:
        logger.warning(
            "the region %r has volume %.4g on the mesh, %.4g was asked for: let the mesh follow its boundary",
            name, size.resolved, size.asked,
        )  # fmt: skip
    return Resolved(name, cells, facets, point, size)


def _marker(gen: Generator, name: str, region: Any) -> tuple[Marker, Any]:
    if callable(region):
        return region, None
    if not isinstance(region, tuple) or len(region) != 2 or not is_number(region[1]) or not region[1] > 0:
        raise ValueError(
            f"the region {name!r} is {region!r}; expected a boundary part's name, a marker of points x, or a tuple "
            "(point, radius) with a positive radius"
        )
    centres, radius = as_points(region[0], gen.domain.dim, f"region {name!r}"), float(region[1])
    if len(centres) > 1:
        raise ValueError(
            f"region {name!r}: one point was expected, got {len(centres)}, in {gen.domain.dim} dimension(s)"
        )
    centre = centres[0]
    return lambda x: ((x - centre[:, None]) ** 2).sum(axis=0) <= radius**2, centre


def _marked(marker: Marker, x: npt.NDArray[np.float64]) -> Mask:
    values = np.asarray(marker(x.T))
    if values.shape != (len(x),) or values.dtype != bool:
        raise ValueError(f"gave {values.dtype} of shape {values.shape} for {len(x)} points; expected as many booleans")
    return values


def _cell_points(gen: Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Quadrature points (n, d) in this rank's cells and their weights (n,)."""
    mesh, dim = gen.domain.mesh, gen.domain.dim
    points, weights = basix.make_quadrature(getattr(basix.CellType, mesh.topology.cell_name()), 8)
    row = ufl.as_vector([*ufl.SpatialCoordinate(mesh), abs(ufl.JacobianDeterminant(mesh))])
    owned = np.arange(mesh.topology.index_map(dim).size_local, dtype=np.int32)
    table = fem.Expression(row, points).eval(mesh, owned).reshape(len(owned), len(points), dim + 1)
    return table[..., :dim].reshape(-1, dim), (table[..., dim] * weights).ravel()


def total(gen: Generator, form: ufl.Form) -> float:
    """A functional summed over all ranks (collective)."""
    return float(gen.domain.comm.allreduce(fem.assemble_scalar(fem.form(form)), op=MPI.SUM))
