"""Regions on a mesh, and generators whose process stops in them.

A region's cells are taken out of the forms and the facets around them become further absorbing parts, so that data act
there as on any boundary: by Nitsche's terms where the process diffuses across, by upwinding where it only drifts in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any, NamedTuple

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem, la
from dolfinx import mesh as dmesh
from ufl.algorithms import extract_coefficients
from ufl.core.expr import Expr

from .._errors import together
from .._log import logger
from .._sample import at_quadrature, neighbours, volumes
from ..chain import Chain
from ..chain.sources import inside_cells
from ..discretisation.generator import Generator
from ..discretisation.territory import Territory, union_tags
from ..domains.domain import Domain, Marker
from ..domains.regions import as_inside, marker_of
from ..models.fields import is_number

Mask = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int32]
Region = str | Marker | tuple[Any, float]
"""A name of a boundary part or of a region of the domain; a marker of points x, x[i] the i-th coordinate, as in
``Domain.mark``; a ball (point, radius); or the corners of a polygon in the plane, shape (n, 2)."""


class Size(NamedTuple):
    """Measure of a region: as its cells resolve it, and as it was asked for (of a boundary part both are the same)."""

    resolved: float
    asked: float


class Resolved(NamedTuple):
    """A region on the mesh."""

    name: str  #: its name
    asked: Region  #: as it was given
    cells: Mask  #: which local cells belong to it
    facets: Integers  #: local boundary facets of it, if it is a boundary part
    inside: Callable[[Any], Mask] | None  #: of points (n, d), if it is inside the domain
    point: Any  #: the centre of a ball, else None
    size: Size  #: its measure


class Stopped(Territory):
    """A domain without some disjoint regions, in which the process stops, as at absorbing parts (collective)."""

    def __init__(self, whole: Territory, regions: list[Resolved]):
        domain, mesh = whole.domain, whole.domain.mesh
        self.whole, self.regions = whole, {r.name: r for r in regions}
        super().__init__(domain, tuple(dict.fromkeys([*whole.absorbing, *self.regions])))
        self.declared = whole.declared
        inside = np.logical_or.reduce([r.cells for r in regions])
        pairs, local = neighbours(mesh)
        both = (pairs >= 0).all(axis=1)
        one = both & (inside[pairs[:, 0]] != inside[pairs[:, 1]])
        self._sides: dict[str, Integers] = {}
        self._stops: list[Integers] = []
        for name in self.absorbing:
            at = np.zeros(len(pairs), dtype=bool)
            own = self.regions[name].facets if name in self.regions else domain.facets(name)
            at[own] = ~inside[pairs[own, 0]]
            if name in self.regions and len(own) == 0:
                at |= one & self.regions[name].cells[pairs].any(axis=1)
            chosen = np.flatnonzero(at)
            outer = np.where(inside[pairs[chosen, 0]], 1, 0)
            self._sides[name] = np.stack([pairs[chosen, outer], local[chosen, outer]], axis=1).astype(np.int32)
            self._stops.append(chosen.astype(np.int32))
        free = both & ~inside[pairs].any(axis=1)
        quadruples = np.stack([pairs[free, 0], local[free, 0], pairs[free, 1], local[free, 1]], axis=1)
        self.interior = [(1, quadruples.astype(np.int32).ravel())]
        self.outside = np.flatnonzero(~inside).astype(np.int32)
        self.cells = dmesh.meshtags(mesh, domain.dim, self.outside, np.ones_like(self.outside))

    def facets(self, parts: Sequence[str]) -> Any:
        """Pairs of cell and local facet, seen from where the process lives."""
        sides = [np.zeros((0, 2), np.int32), *(self._sides[part] for part in parts)]
        return [(1, np.unique(np.concatenate(sides), axis=0).ravel())]

    @cached_property
    def stops(self) -> Integers:
        """Local indices of the facets at which the process stops."""
        return np.unique(np.concatenate(self._stops))

    def idle(self, V: fem.FunctionSpace) -> Mask:
        """Which local unknowns belong to no cell outside the regions, on any rank (collective)."""
        touched = fem.Function(V)
        touched.x.array[np.unique(V.dofmap.list[self.outside])] = 1.0
        touched.x.scatter_reverse(la.InsertMode.add)
        touched.x.scatter_forward()
        return touched.x.array == 0

    def on(self, domain: Domain) -> "Stopped":
        """The same regions, resolved on another mesh (collective)."""
        return Stopped(self.whole.on(domain), resolve(domain, {name: r.asked for name, r in self.regions.items()}))

    def complete(self, u: fem.Function, data: Mapping[str, Any]) -> None:
        """Give the unknowns inside the regions their data (collective)."""
        idle = self.idle(u.function_space)
        for name, value in data.items():
            if name in self.regions and is_number(value):
                dofs = np.unique(u.function_space.dofmap.list[self.regions[name].cells])
                u.x.array[dofs[idle[dofs]]] = value


def stopped(gen: Any, regions: Mapping[str, Region] | list[Resolved]) -> Any:
    """The generator or chain whose process also stops in regions, named parts of its own (collective)."""
    found = regions if isinstance(regions, list) else resolve(gen.domain, regions, isinstance(gen, Generator))
    if isinstance(gen, Chain):
        return gen.stopped({r.name: r.inside for r in found if r.inside}, [r.name for r in found if not r.inside])
    return gen.with_territory(Stopped(gen.territory, found))


def fitted(gen: Generator, regions: Mapping[str, Region]) -> Generator:
    """The generator on a mesh that follows the regions inside, unless it is tied to its own (collective)."""
    inside = {name: region for name, region in regions.items() if not isinstance(region, str)}
    if not inside or tied_to_mesh(gen.process):
        return gen.for_regions()
    domain = gen.domain
    for name, region in inside.items():
        domain = domain.following(region, name)
    return gen.with_domain(domain).for_regions()


def tied_to_mesh(process: Any) -> bool:
    """Whether a Function is among the coefficients of a process."""
    if isinstance(process, Expr):
        return any(isinstance(c, fem.Function) for c in extract_coefficients(process))
    parts = [getattr(process, part.name) for part in fields(process)] if is_dataclass(process) else process
    return isinstance(parts, list | tuple) and any(tied_to_mesh(part) for part in parts)


def resolve(domain: Domain, regions: Mapping[str, Region], follow: bool = True) -> list[Resolved]:
    """The regions on a domain's mesh: a cell belongs to one if its midpoint does (collective).

    A mesh that follows a region's boundary resolves it exactly; otherwise its size tells how well it is resolved.
    Without ``follow`` its cells do not matter, as to chains, which only ask for points.

    Raises:
        ValueError: unknown boundary part, a marker that fails, an empty region, two regions with a common cell.
    """
    found = [_resolve(domain, name, region, follow) for name, region in regions.items()]
    for i, a in enumerate(found):
        for b in found[:i]:
            common = domain.comm.allreduce(int((a.cells & b.cells).sum()) + len(np.intersect1d(a.facets, b.facets)))
            if common:
                raise ValueError(f"the regions {b.name!r} and {a.name!r} overlap; first passages need disjoint ones")
    return found


def _resolve(domain: Domain, name: str, region: Region, follow: bool) -> Resolved:
    mesh = domain.mesh
    count = mesh.topology.index_map(domain.dim)
    cells: Mask = np.zeros(count.size_local + count.num_ghosts, dtype=bool)
    facets: Integers = np.zeros(0, np.int32)
    if isinstance(region, str) and region in domain.regions and region not in domain.parts:
        cells[domain.cells(region)] = True
        volume = domain.comm.allreduce(float(volumes(mesh)[cells[: count.size_local]].sum()))
        inside = None if follow else inside_cells(domain, cells[: count.size_local])
        return Resolved(name, region, cells, facets, inside, None, Size(volume, volume))
    if isinstance(region, str):
        facets = domain.facets(region)
        ds = ufl.Measure("ds", mesh, subdomain_data=union_tags(domain, (region,)), subdomain_id=1)
        area = total(domain.comm, fem.Constant(mesh, 1.0) * ds)
        return Resolved(name, region, cells, facets, None, None, Size(area, area))
    inside = as_inside(marker_of(region, domain.dim, name), f"region {name!r}")
    x = dmesh.compute_midpoints(mesh, domain.dim, np.arange(len(cells), dtype=np.int32))[:, : domain.dim]
    points, weights = at_quadrature(mesh, [*ufl.SpatialCoordinate(mesh)], 8)
    with together(domain.comm):
        cells, asked = inside(x), float(weights.ravel()[inside(points.reshape(-1, domain.dim))].sum())
    volume = weights.sum(axis=1)[cells[: count.size_local]].sum() if follow else asked
    point = np.array(region[0], dtype=float, ndmin=1) if isinstance(region, tuple) else None
    size = Size(*(domain.comm.allreduce(float(v), op=MPI.SUM) for v in (volume, asked)))
    if not follow:
        return Resolved(name, region, cells, facets, inside, point, size)
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
    return Resolved(name, region, cells, facets, inside, point, size)


def total(comm: MPI.Comm, form: ufl.Form) -> float:
    """A functional summed over all ranks (collective)."""
    return float(comm.allreduce(fem.assemble_scalar(fem.form(form)), op=MPI.SUM))
