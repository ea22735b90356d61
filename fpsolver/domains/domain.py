"""Domains: meshes of intervals, triangles or tetrahedra whose boundary parts have names."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
from dolfinx import default_real_type
from dolfinx import mesh as dmesh

from .. import _compat
from .._arguments import check_choice, check_integer, check_numbers, expect
from .._errors import on_root
from .._log import logger
from . import _gmsh, _meshes, _refine, meshfile
from ._arrays import RawMesh
from ._follow import ACCURACY, changes_inside_facets, followed
from ._meshes import GHOSTS
from ._parts import REST, Facets, Marker, Parts, as_inside
from ._periodic import LEAST
from ._round import HIGHEST, RoundShape
from .regions import check_polygon, marker_of

Point = Sequence[float]
Edges = Mapping[str, Sequence[int]]

SIDES = {1: ("left", "right"), 2: ("left", "right", "bottom", "top")}
SIDES[3] = ("left", "right", "front", "back", "bottom", "top")
DIAGONALS = ("crossed", "right", "left", "left_right", "right_left")


class Domain:
    """A mesh whose boundary parts have names (collective, like every method that takes a name or a marker).

    Args:
        mesh: simplices of full dimension (triangles in the plane, not on a surface), with shared facets as ghosts.
        parts: for each name the local indices of its facets, or a marker as in :meth:`mark`.  Without it, the whole
            boundary is one part called "boundary".  Boundary facets that no part covers become the part "unnamed".

    Attributes:
        mesh: the DOLFINx mesh.
        comm: its communicator.
        dim: dimension of the cells and of space.
        boundary: this rank's facets of the boundary, with their cells and corners.
        defects: for each part or region that the mesh only approximates, the measure by which it is missed.
        periods: ends of the periodic coordinates, shape (dim, 2) with NaN elsewhere; None if there are none.

    Raises:
        ValueError: if the mesh or a part is unsuitable; the same on every rank.
    """

    def __init__(self, mesh: dmesh.Mesh, parts: Mapping[str, npt.ArrayLike | Marker] | None = None):
        self.mesh, self.comm, self.dim = mesh, mesh.comm, mesh.topology.dim
        _meshes.check_mesh(mesh)
        self._parts = Parts(mesh)
        self._regions: dict[str, Facets] = {}
        self.defects: dict[str, float] = {}
        self.periods: npt.NDArray[np.float64] | None = None
        self._round: RoundShape | None = None
        self.boundary = self._parts.boundary
        for name, facets in (parts or {}).items():
            if callable(facets):
                self.mark(name, facets)
            else:
                self._parts.add_given(name, facets)
        if parts is not None and REST not in parts:
            self._parts.facets.pop(REST, None)  # of the domain while it had fewer parts
        if parts is None and mesh.comm.allreduce(len(self.boundary.facets)):
            self._parts.add("boundary", self.boundary.facets)
        if parts is not None:
            self._parts.add_rest()

    @classmethod
    def from_tags(cls, mesh: dmesh.Mesh, facet_tags: dmesh.MeshTags, names: Mapping[str, int]) -> "Domain":
        """Name the values of existing facet tags, e.g. ``Domain.from_tags(mesh, tags, {"left": 1, "right": 2})``."""
        if facet_tags.dim != mesh.topology.dim - 1:
            raise ValueError(f"facet_tags has dimension {facet_tags.dim}; expected facets, {mesh.topology.dim - 1}")
        return cls(mesh, {name: facet_tags.find(value) for name, value in names.items()})

    # -- Constructors

    @classmethod
    def interval(
        cls, a: float, b: float, n: int, *, periodic: bool = False, comm: MPI.Comm = MPI.COMM_WORLD
    ) -> "Domain":
        """The interval [a, b] in n cells; parts left, right.

        ``periodic``: b is a again, as for an angle; there are no ends.  See :meth:`rectangle`.
        """
        low, high, cells = _box("interval", 1, (a,), (b,), (n,))
        mesh = dmesh.create_interval(comm, cells[0], [low[0], high[0]], ghost_mode=GHOSTS, dtype=default_real_type)
        return cls._with_sides(mesh, low, high, cells, (periodic,))

    @classmethod
    def rectangle(
        cls,
        low: Point,
        high: Point,
        n: Sequence[int],
        *,
        diagonal: str = "crossed",
        periodic: Sequence[bool] = (False, False),
        comm: MPI.Comm = MPI.COMM_WORLD,
    ) -> "Domain":
        """The rectangle between two corners in n[0] x n[1] small ones; parts left, right, bottom, top.

        ``diagonal`` is how they are cut into triangles: "crossed" (four each, the default: symmetric in x and in y for
        every n, and no triangle has all its vertices on the boundary), "right", "left" or "left_right" (two each).

        ``periodic`` says of each coordinate whether its two sides are one: there is no part there, and drift and
        diffusion must have that period.  At least three cells are needed in that direction.  Answers are evaluated
        between the two ends; paths of :func:`~fpsolver.simulate` keep count of the turns they made.
        """
        low, high, cells = _box("rectangle", 2, low, high, n)
        check_choice("Domain.rectangle: diagonal", diagonal, DIAGONALS)
        cut = dmesh.DiagonalType.__members__[diagonal]
        mesh = dmesh.create_rectangle(comm, [low, high], cells, ghost_mode=GHOSTS, diagonal=cut)
        return cls._with_sides(mesh, low, high, cells, periodic)

    @classmethod
    def box(
        cls,
        low: Point,
        high: Point,
        n: Sequence[int],
        *,
        periodic: Sequence[bool] = (False, False, False),
        comm: MPI.Comm = MPI.COMM_WORLD,
    ) -> "Domain":
        """The box between two corners in n[0] x n[1] x n[2] small ones of six tetrahedra each.

        The parts are left, right (smallest and largest x), front, back (y), bottom, top (z); ``periodic`` as in
        :meth:`rectangle`.
        """
        low, high, cells = _box("box", 3, low, high, n)
        mesh = dmesh.create_box(comm, [low, high], cells, ghost_mode=GHOSTS)
        return cls._with_sides(mesh, low, high, cells, periodic)

    @classmethod
    def _with_sides(
        cls, mesh: dmesh.Mesh, low: Point, high: Point, n: Sequence[int], periodic: Sequence[bool]
    ) -> "Domain":
        sides, given = _meshes.sides(mesh, low, high, SIDES[len(low)]), np.asarray(periodic)
        if not given.any():
            return cls(mesh, sides)
        good = given.dtype == bool and given.shape == (len(low),)
        expect("Domain: periodic", periodic, f"{len(low)} of True or False", good)
        expect("Domain: n", list(n), f"at least {LEAST} cells in periodic directions", min(np.array(n)[given]) >= LEAST)
        kept = {name: sides[name] for name, gone in zip(SIDES[len(low)], np.repeat(given, 2), strict=True) if not gone}
        periods = np.where(given[:, None], np.column_stack((low, high)), np.nan)
        return cls._assembled(mesh.comm, _refine.refine(mesh, np.zeros(0, np.int32), kept, {}, periods=periods))

    @classmethod
    def disk(
        cls, center: Point, radius: float, h: float, *, order: int = 2, comm: MPI.Comm = MPI.COMM_WORLD
    ) -> "Domain":
        """A disk in triangles of size h; its one part is called boundary (needs gmsh).

        ``order`` is the degree, 1 to 3, of the polynomials by which the cells follow the circle.  Straight cells cap
        every solution at an error of order h^2 (area at h = 0.15: 4e-3).  With degree 2 the nodes between vertices are
        where they make the area exact, and the cap is of order h^6 (exit time at h = 0.3: 5e-9).  Degree 3 has order
        h^4 (area at h = 0.15: 2e-7) and cannot be written as .xdmf.  Error bars contain what cells of a higher degree
        would change.
        """
        return cls._round_domain("disk", 2, center, [radius], h, order, comm)

    @classmethod
    def ball(
        cls, center: Point, radius: float, h: float, *, order: int = 2, comm: MPI.Comm = MPI.COMM_WORLD
    ) -> "Domain":
        """A ball in tetrahedra, as :meth:`disk` (volume at h = 0.3: 3e-9 for order 2, 4e-5 for order 3)."""
        return cls._round_domain("ball", 3, center, [radius], h, order, comm)

    @classmethod
    def annulus(
        cls, center: Point, r_inner: float, r_outer: float, h: float, *, order: int = 2, comm: MPI.Comm = MPI.COMM_WORLD
    ) -> "Domain":
        """What lies between two concentric circles, or spheres if the center has three coordinates, as :meth:`disk`.

        The parts are inner and outer.
        """
        expect("Domain.annulus: r_inner", r_inner, f"a smaller one than r_outer = {r_outer}", r_inner < r_outer)
        dim = 3 if len(center) == 3 else 2
        return cls._round_domain("annulus", dim, center, [r_inner, r_outer], h, order, comm)

    @classmethod
    def polygon(
        cls, vertices: npt.ArrayLike, h: float, edges: Edges | None = None, *, comm: MPI.Comm = MPI.COMM_WORLD
    ) -> "Domain":
        """A polygon, such as a basin of attraction, in triangles of size h or its edges, if they are shorter (gmsh).

        ``vertices`` are its corners in order around it, shape (n, 2), ``edges`` names of parts with numbers of edges:
        edge i joins vertex i to vertex i + 1, the last one to the first.  The others form the part "wall".

        Raises:
            ValueError: fewer than three vertices, unknown or repeated edges, a polygon that crosses itself.
        """
        corners, parts = check_polygon(vertices, h, edges)
        return cls._distribute(comm, lambda: _gmsh.polygon_geometry(corners, float(h), parts))

    @classmethod
    def _round_domain(
        cls, kind: str, dim: int, center: Point, radii: list[float], h: float, order: int, comm: MPI.Comm
    ) -> "Domain":
        where = f"Domain.{kind}"
        middle = check_numbers(f"{where}: center", center, dim)
        r, size = check_numbers(f"{where}: radius", radii, len(radii)), check_numbers(f"{where}: h", [h], 1)[0]
        expect(f"{where}: (radius, h)", (min(r), size), "a pair of positive numbers", min(*r, size) > 0)
        check_integer(f"{where}: order", order, 1, 3)
        domain = cls._distribute(comm, lambda: _gmsh.round_geometry(kind, dim, middle, r, size, order))
        domain._round = RoundShape(np.array(middle), tuple(r), size) if order > 1 else None
        return domain

    @classmethod
    def read(cls, path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> "Domain":
        """Read a mesh file; its parts keep their names or, where it has no names, their numbers as names ("5").

        A ``.msh`` file must have physical groups for parts of the boundary.  An ``.xdmf`` file of
        :func:`fpsolver.io.write_domain` comes back on any number of ranks.  Everything else goes through meshio: sets
        of facets become parts, and where the file knows none, the whole boundary is the part "boundary", to be
        divided by :meth:`mark`.  Error bars say nothing of how far the file's cells are from the shape that
        was meshed.  Cells that overlap or do not fit together are refused; a mesh in a plane along two axes keeps these
        two coordinates.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file cannot be used, with the reason.
            ModuleNotFoundError: if gmsh or meshio is needed and missing.
        """
        path = Path(path)
        names = comm.bcast(on_root(comm, lambda: meshfile.inspect(path)), root=0)
        if names is not None:
            return cls(*_meshes.read_xdmf(path, names, comm))
        reader = _gmsh.read_gmsh if path.suffix == ".msh" else meshfile.read_meshio
        return cls._distribute(comm, lambda: reader(path))

    @classmethod
    def _distribute(cls, comm: MPI.Comm, work: Callable[[], RawMesh | None]) -> "Domain":
        """Make a domain of the arrays that ``work`` gives on rank 0."""
        raw = on_root(comm, work)
        empty = comm.bcast(raw.empty() if raw else None, root=0)
        return cls._assembled(comm, raw or empty)

    @classmethod
    def _assembled(cls, comm: MPI.Comm, share: RawMesh) -> "Domain":
        """The domain of which each rank holds a share."""
        mesh = _meshes.create_mesh(comm, share.cells, share.points, share.dim, share.degree, share.periods)
        domain = cls(mesh)
        domain.periods = share.periods
        if share.facets:
            domain._parts.replace({name: np.concatenate(comm.allgather(f)) for name, f in share.facets.items()})
        first = sum(comm.allgather(len(share.cells))[: comm.rank])
        known = np.asarray(mesh.topology.original_cell_index)
        for name, rows in share.groups.items():
            members = np.concatenate(comm.allgather(first + rows))
            domain._regions[name] = np.flatnonzero(np.isin(known, members)).astype(np.int32)
        return domain

    # -- Refinement

    def refine(self, cells: npt.ArrayLike) -> "Domain":
        """A domain whose mesh is finer in some cells, with the same parts (collective).

        Each of these cells is divided into 2^dim, its neighbours as far as the mesh needs to conform.  Curved cells
        keep their curve, and the new cells are distributed afresh over the ranks.

        Args:
            cells: local indices of cells that this rank owns, shape (n,).

        Raises:
            ValueError: something else than indices of owned cells; the same on every rank.
        """
        # quadratic cells keep their curve, which makes the volume exact; cubic ones follow the circle
        follow = self._round if _compat.coordinate_map(self.mesh).degree > 2 else None
        return self._divided(_refine.owned_cells(self.mesh, cells), move=follow and follow.snapped, shape=self._round)

    def closer(self) -> "Domain | None":
        """The same cells with polynomials of a higher degree that follow the shape, if it is known (collective).

        Answers on it tell how much the shape of the mesh matters.  None where the cells follow it exactly (boxes,
        polygons), where it is not known (files), and where the nodes were moved.
        """
        degree, shape = _compat.coordinate_map(self.mesh).degree, self._round
        if shape is None or degree >= HIGHEST:
            return None
        return self._divided(np.zeros(0, np.int32), shape=shape, degree=degree + 2 - degree % 2, move=shape.snapped)

    def mapped(self, f: _refine.Move) -> "Domain":
        """A domain whose nodes are where a map takes those of this one, with the same parts (collective).

        Args:
            f: takes points x of shape (dim, n), so that x[i] is the i-th coordinate, and returns as many of the image,
                as ``lambda x: (x[0] ** 3, 2 * x[1])`` does.  Cells stay polynomials of their degree, so that edges of
                straight cells stay straight.  Further calls of :meth:`mark` see the moved boundary.

        Raises:
            ValueError: it gives something else, fails, or folds cells; the same on every rank.
        """
        return self._divided(np.zeros(0, np.int32), move=f)

    def _divided(
        self, cells: Facets, watched: Mapping[str, Facets] | None = None, shape: RoundShape | None = None, **how: Any
    ) -> "Domain":
        regions = {**self._regions, **(watched or {})}
        how = {"periods": self.periods, **how}
        domain = self._assembled(self.comm, _refine.refine(self.mesh, cells, self._parts.facets, regions, **how))
        domain._round = shape
        return domain

    def _distributed(self, raw: RawMesh | None) -> "Domain":
        """The domain of a mesh that rank 0 holds, of the same shape."""
        domain = self._distribute(self.comm, lambda: raw)
        domain._round = self._round
        return domain

    # -- Boundary parts and regions

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the boundary parts, in the same order on every rank."""
        return tuple(self._parts.facets)

    def facets(self, name: str) -> Facets:
        """Sorted local indices of the boundary facets of a part that this rank owns."""
        if name not in self._parts.facets:
            inside = f", the regions inside {', '.join(self.regions)}" if self.regions else ""
            raise ValueError(f"no boundary part is called {name!r}; the parts are {', '.join(self.parts)}{inside}")
        return self._parts.facets[name]

    def integration_facets(self, name: str) -> npt.NDArray[np.int32]:
        """A part as DOLFINx integrates over it: cell, local facet, cell, local facet, ... on this rank.

        ``ufl.ds(subdomain_data=[(1, domain.integration_facets("left"))])`` also serves parts that overlap.
        """
        where = np.searchsorted(self.boundary.facets, self.facets(name))
        pairs = np.column_stack((self.boundary.cells[where], self.boundary.local[where]))
        return pairs.astype(np.int32).ravel()

    def mark(self, name: str, marker: Marker) -> None:
        """Name a further part of the boundary, which may overlap with others, exactly to where the marker ends.

        Where it ends inside facets, the mesh is replaced by one whose cells are cut there, which takes nothing from
        generators that use the domain already.  In one and two dimensions the ends are then right to 1e-10 of the size
        of the domain.  In three, the rim is followed by chords, and cells there are refined until the area that they
        miss is below 1e-4 of the part or they were halved four times; :attr:`defects` says how much it is.  Pieces of
        the boundary that a marker reaches around a corner by less than 2e-3 of the size, as ``x[1] > 0.999`` does, are
        no part of it.

        Args:
            name: a name that is not yet used.
            marker: takes points x of shape (dim, n), so that x[i] is the i-th coordinate, and returns n booleans.
                On curved boundaries it should also hold near the curve, or at least at all vertices.

        Raises:
            ValueError: if the name is used, the marker does not return n booleans, or no boundary facet matches.
        """
        self._parts.check_new(name)
        inside = as_inside(marker, f"part {name!r}")
        facets = self._parts.marked(inside)
        if not changes_inside_facets(self, inside):
            self._parts.add(name, facets)
            return
        domain, fit = followed(self, name, inside, on_boundary=True)
        if domain is self:
            self._parts.add(name, facets)
            return
        if name not in domain.parts:
            self._parts.add(name, facets[:0])
        if (defect := self.comm.bcast(fit.defect if fit else None, root=0)) > 0:
            self.defects[name] = defect
        self.mesh, self._parts, self._regions = domain.mesh, domain._parts, domain._regions
        self.boundary = domain.boundary

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of regions inside: groups of cells of a mesh file, and those of :meth:`with_region`."""
        return tuple(self._regions)

    def cells(self, region: str) -> Facets:
        """Sorted local indices of the cells of a region, those that other ranks own included."""
        if region not in self._regions:
            known = ", ".join(self.regions) or "none"
            raise ValueError(f"no region is called {region!r}; the regions are {known}")
        return self._regions[region]

    def with_region(self, name: str, region: Any) -> "Domain":
        """A domain in which a region is a set of whole cells, cut at its edge, with a name (collective).

        Verbs that take regions take the name.  In one dimension its ends are right to 1e-10 of the size of the domain,
        in two so are regions with straight edges away from their corners.  Curves are followed by chords; cells there
        are refined until what lies between is below 1e-4 of the region, and a warning says so if it is not.

        Args:
            name: a name that no part or region has.
            region: a ball (centre, radius), the corners of a polygon in the plane, shape (n, 2), or a marker of points
                x of shape (dim, n), so that x[i] is the i-th coordinate.

        Raises:
            ValueError: the name is used, the region is something else, or its marker does not return n booleans.
        """
        if name in self._regions:
            raise ValueError(f"there is a region {name!r} already; the regions are {', '.join(self.regions)}")
        self._parts.check_new(name)
        return self.following(region, name)

    def following(self, region: Any, name: str) -> "Domain":
        """The same; a region of this name is replaced (collective)."""
        inside = as_inside(marker_of(region, self.dim, name), f"region {name!r}")
        domain, fit = followed(self, name, inside, on_boundary=False)
        defect, size = self.comm.bcast((fit.defect, fit.size) if fit else None, root=0)
        if defect > ACCURACY * size:
            logger.warning(
                "the region %r of size %.4g is followed to %.1e only: refine the domain at its edge", name, size, defect
            )
        return domain

    def __repr__(self) -> str:
        cells = self.mesh.topology.index_map(self.dim).size_global
        shape = {1: "intervals", 2: "triangles", 3: "tetrahedra"}[self.dim]
        return f"Domain({self.dim}D, {cells} {shape}, parts: {', '.join(self.parts)})"


def _box(kind: str, dim: int, low: Point, high: Point, n: Sequence[int]) -> tuple[list[float], list[float], list[int]]:
    """Corners and numbers of cells of a box, checked."""
    where = f"Domain.{kind}"
    a, b = check_numbers(f"{where}: the lower corner", low, dim), check_numbers(f"{where}: the upper corner", high, dim)
    expect(f"{where}: the upper corner", high, f"one beyond the lower, {low!r},", all(np.less(a, b)))
    check_numbers(f"{where}: n", n, dim)
    return a, b, [check_integer(f"{where}: n", k) for k in n]
