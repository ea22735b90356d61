"""Domains: meshes of intervals, triangles or tetrahedra whose boundary parts have names."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
from dolfinx import default_real_type
from dolfinx import mesh as dmesh

from .. import _compat
from .._errors import on_root
from .._log import logger
from . import _gmsh, _meshes, _refine, meshfile
from ._arguments import check_box, check_polygon, check_round
from ._arrays import RawMesh
from ._follow import ACCURACY, as_inside, changes_inside_facets, followed
from ._measure import Fit
from ._meshes import GHOSTS, end_exactly
from ._parts import REST, Facets, Marker, Parts, sides
from ._round import HIGHEST, RoundShape


class Domain:
    """A mesh whose boundary parts have names (collective, like every method that takes a name or a marker).

    Args:
        mesh: simplices of full dimension (triangles in the plane, not on a surface), with shared facets as ghosts.
        parts: for each name the local indices of its facets, or a marker as in :meth:`mark`.  Without it, the whole
            boundary is one part called "boundary".  Boundary facets that no part covers become the part "unnamed".
        exact: whether cells are cut where a marker ends inside a facet.

    Attributes:
        mesh: the DOLFINx mesh.
        comm: its communicator.
        dim: dimension of the cells and of space.
        boundary: this rank's facets of the boundary, with their cells and corners.
        defects: for each part or region that the mesh only approximates, the measure by which it is missed.

    Raises:
        ValueError: if the mesh or a part is unsuitable; the same on every rank.
    """

    def __init__(
        self, mesh: dmesh.Mesh, parts: Mapping[str, npt.ArrayLike | Marker] | None = None, *, exact: bool = True
    ):
        self.mesh, self.comm, self.dim = mesh, mesh.comm, mesh.topology.dim
        _meshes.check_mesh(mesh)
        self._parts = Parts(mesh)
        self._regions: dict[str, Facets] = {}
        self.defects: dict[str, float] = {}
        self._round: RoundShape | None = None
        self.boundary = self._parts.boundary
        for name, facets in (parts or {}).items():
            if callable(facets):
                self._mark(name, facets, exact=exact)
            else:
                self._parts.add_given(name, facets)
        if parts is not None and REST not in parts:
            self._parts.facets.pop(REST, None)  # of the domain while it had fewer parts
        if parts is None:
            self._parts.add("boundary", self.boundary.facets)
        elif (count := self._parts.add_rest()) and parts:
            logger.info("%d boundary facets belong to no part of %s: they form the part %r", count, tuple(parts), REST)

    @classmethod
    def from_tags(cls, mesh: dmesh.Mesh, facet_tags: dmesh.MeshTags, names: Mapping[str, int]) -> "Domain":
        """Name the values of existing facet tags, e.g. ``Domain.from_tags(mesh, tags, {"left": 1, "right": 2})``."""
        if facet_tags.dim != mesh.topology.dim - 1:
            raise ValueError(f"facet_tags has dimension {facet_tags.dim}; expected facets, {mesh.topology.dim - 1}")
        return cls(mesh, {name: facet_tags.find(value) for name, value in names.items()})

    # -- Constructors

    @classmethod
    def interval(cls, a: float, b: float, n: int, *, comm: MPI.Comm = MPI.COMM_WORLD) -> "Domain":
        """The interval [a, b] in n cells; parts left, right."""
        low, high, cells = check_box("interval", (a,), (b,), (n,))
        mesh = dmesh.create_interval(comm, cells[0], [low[0], high[0]], ghost_mode=GHOSTS, dtype=default_real_type)
        end_exactly(mesh, low, high)
        return cls(mesh, sides(low, high, ("left", "right")), exact=False)

    @classmethod
    def rectangle(
        cls,
        low: Sequence[float],
        high: Sequence[float],
        n: Sequence[int],
        *,
        diagonal: str = "crossed",
        comm: MPI.Comm = MPI.COMM_WORLD,
    ) -> "Domain":
        """The rectangle between two corners in n[0] x n[1] small ones; parts left, right, bottom, top.

        Args:
            low: left lower corner (x0, y0).
            high: right upper corner (x1, y1).
            n: numbers of small rectangles (nx, ny).
            diagonal: how they are cut into triangles: "crossed" (four each, the default: symmetric in x and in y for
                every n, and no triangle has all its vertices on the boundary), "right", "left" or "left_right"
                (two each).
            comm: communicator.
        """
        x0, x1, cells = check_box("rectangle", low, high, n)
        known = ("crossed", "right", "left", "left_right", "right_left")
        if diagonal not in known:
            raise ValueError(f"Domain.rectangle: diagonal must be one of {', '.join(known)}, got {diagonal!r}")
        mesh = dmesh.create_rectangle(
            comm, [x0, x1], cells, ghost_mode=GHOSTS, diagonal=dmesh.DiagonalType.__members__[diagonal]
        )
        end_exactly(mesh, x0, x1)
        return cls(mesh, sides(x0, x1, ("left", "right", "bottom", "top")), exact=False)

    @classmethod
    def box(
        cls, low: Sequence[float], high: Sequence[float], n: Sequence[int], *, comm: MPI.Comm = MPI.COMM_WORLD
    ) -> "Domain":
        """The box between two corners in n[0] x n[1] x n[2] small ones of six tetrahedra each.

        The parts are left, right (smallest and largest x), front, back (y), bottom, top (z).
        """
        x0, x1, cells = check_box("box", low, high, n)
        mesh = dmesh.create_box(comm, [x0, x1], cells, ghost_mode=GHOSTS)
        end_exactly(mesh, x0, x1)
        return cls(mesh, sides(x0, x1, ("left", "right", "front", "back", "bottom", "top")), exact=False)

    @classmethod
    def disk(
        cls, center: Sequence[float], radius: float, h: float, *, order: int = 2, comm: MPI.Comm = MPI.COMM_WORLD
    ) -> "Domain":
        """A disk in triangles of size h; its one part is called boundary (needs gmsh).

        Args:
            center: (x, y).
            radius: its radius.
            h: length of the edges.
            order: degree, 1 to 3, of the polynomials by which the cells follow the circle.  Straight cells cap every
                solution at an error of order h^2 (area at h = 0.15: 4e-3).  With degree 2 the nodes between vertices
                are where they make the area exact, and the cap is of order h^6 (exit time at h = 0.3: 5e-9).  Degree 3
                has order h^4 (area at h = 0.15: 2e-7) and cannot be written as .xdmf.
            comm: communicator.

        Error bars contain what cells of a higher degree would change.
        """
        return cls._round_domain("disk", 2, center, [radius], h, order, comm)

    @classmethod
    def ball(
        cls, center: Sequence[float], radius: float, h: float, *, order: int = 2, comm: MPI.Comm = MPI.COMM_WORLD
    ) -> "Domain":
        """A ball in tetrahedra of size h; its one part is called boundary (needs gmsh).

        Args:
            center: (x, y, z).
            radius: its radius.
            h: length of the edges.
            order: as in :meth:`disk` (volume at h = 0.3: 3e-9 for order 2, 4e-5 for order 3).
            comm: communicator.
        """
        return cls._round_domain("ball", 3, center, [radius], h, order, comm)

    @classmethod
    def annulus(
        cls,
        center: Sequence[float],
        r_inner: float,
        r_outer: float,
        h: float,
        *,
        order: int = 2,
        comm: MPI.Comm = MPI.COMM_WORLD,
    ) -> "Domain":
        """What lies between two concentric circles, or spheres if the center has three coordinates (gmsh).

        The parts are inner and outer; ``h`` and ``order`` are as in :meth:`disk` and :meth:`ball`.
        """
        dim = 3 if len(center) == 3 else 2
        return cls._round_domain("annulus", dim, center, [r_inner, r_outer], h, order, comm)

    @classmethod
    def polygon(
        cls,
        vertices: npt.ArrayLike,
        h: float,
        edges: Mapping[str, Sequence[int]] | None = None,
        *,
        comm: MPI.Comm = MPI.COMM_WORLD,
    ) -> "Domain":
        """A polygon, such as a basin of attraction, in triangles of size h or its edges, if they are shorter (gmsh).

        Args:
            vertices: corners in order around it, shape (n, 2).
            h: length of the triangles' edges.
            edges: names of parts and the numbers of their edges; edge i joins vertex i to vertex i + 1, the last one
                to the first.  The others form the part "wall".
            comm: communicator.

        Raises:
            ValueError: fewer than three vertices, unknown or repeated edges, a polygon that crosses itself.
        """
        corners, parts = check_polygon(vertices, h, edges)
        return cls._distribute(comm, lambda: _gmsh.polygon_geometry(corners, float(h), parts))

    @classmethod
    def _round_domain(
        cls, kind: str, dim: int, center: Sequence[float], radii: list[float], h: float, order: int, comm: MPI.Comm
    ) -> "Domain":
        middle, r = check_round(kind, dim, center, radii, h, order)
        domain = cls._distribute(comm, lambda: _gmsh.round_geometry(kind, dim, middle, r, float(h), order))
        domain._round = RoundShape(np.array(middle), tuple(r), float(h)) if order > 1 else None
        return domain

    @classmethod
    def read(cls, path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> "Domain":
        """Read a mesh file; its parts keep their names or, where it has no names, their numbers as names ("5").

        A ``.msh`` file must have physical groups for parts of the boundary.  An ``.xdmf`` file of
        :func:`fpsolver.io.write_domain` comes back on any number of ranks.  Everything else goes through meshio: sets
        of facets become parts, and where the file knows none, the whole boundary is the part "boundary", to be
        divided by :meth:`mark`.  Error bars say nothing of how far the file's cells are from the shape that
        was meshed.  Cells that overlap or do not fit together are refused; a mesh in a plane along two axes keeps these
        two coordinates.  Boundary facets that the named parts leave over become the part "unnamed".

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
        marked = _refine.owned_cells(self.mesh, cells)
        if self._round is not None and _compat.coordinate_map(self.mesh).degree > 2:
            return self._on_curve(marked)
        domain = self._divided(marked)  # quadratic cells keep their curve, which makes the volume exact
        domain._round = self._round
        return domain

    def closer(self) -> "Domain | None":
        """The same cells with polynomials of a higher degree that follow the shape, if it is known (collective).

        Answers on it tell how much the shape of the mesh matters.  None where the cells follow it exactly (boxes,
        polygons), where it is not known (files), and where the nodes were moved.
        """
        degree = _compat.coordinate_map(self.mesh).degree
        if self._round is None or degree >= HIGHEST:
            return None
        return self._on_curve(np.zeros(0, np.int32), degree + 2 - degree % 2)

    def _on_curve(self, cells: npt.NDArray[np.int32], degree: int | None = None) -> "Domain":
        assert self._round is not None
        domain = self._divided(cells, degree=degree, move=self._round.snapped)
        domain._round = self._round
        return domain

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
        self, cells: npt.NDArray[np.int32], watched: Mapping[str, npt.NDArray[np.int32]] | None = None, **how: Any
    ) -> "Domain":
        share = _refine.refine(self.mesh, cells, self._parts.facets, {**self._regions, **(watched or {})}, **how)
        return self._assembled(self.comm, share)

    def _distributed(self, raw: RawMesh | None) -> "Domain":
        """The domain of a mesh that rank 0 holds."""
        return self._distribute(self.comm, lambda: raw)

    @classmethod
    def _assembled(cls, comm: MPI.Comm, share: RawMesh) -> "Domain":
        """The domain of which each rank holds a share."""
        mesh = _meshes.create_mesh(comm, share.cells, share.points, share.dim, share.degree)
        domain = cls(mesh)
        if share.facets:
            domain._parts.replace({name: np.concatenate(comm.allgather(f)) for name, f in share.facets.items()})
        first = sum(comm.allgather(len(share.cells))[: comm.rank])
        owned = np.asarray(mesh.topology.original_cell_index)[: mesh.topology.index_map(share.dim).size_local]
        for name, rows in share.groups.items():
            members = np.concatenate(comm.allgather(first + rows))
            domain._regions[name] = np.flatnonzero(np.isin(owned, members)).astype(np.int32)
        return domain

    def following(self, region: Marker, name: str = "region") -> "Domain":
        """A domain in which a region is a set of whole cells, cut at its edge (collective).

        In one dimension its ends are right to 1e-10 of the size of the domain, in two so are regions with straight
        edges away from their corners.  Curves are followed by chords; cells there are refined until what lies between
        is below 1e-4 of the region, and a warning says so if it is not.

        Args:
            region: a marker of points x of shape (dim, n), so that x[i] is the i-th coordinate.
            name: what messages call it.

        Raises:
            ValueError: the marker does not return n booleans.
        """
        domain, fit = followed(self, name, as_inside(region, f"region {name!r}"), on_boundary=False)
        defect, size = self.comm.bcast((fit.defect, fit.size) if fit else None, root=0)
        if defect > ACCURACY * size:
            logger.warning(
                "the region %r of size %.4g is followed to %.1e only: refine the domain at its edge", name, size, defect
            )
        return domain

    # -- Boundary parts

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the boundary parts, in the same order on every rank."""
        return tuple(self._parts.facets)

    def facets(self, name: str) -> Facets:
        """Sorted local indices of the boundary facets of a part that this rank owns."""
        self._parts.check_names([name])
        return self._parts.facets[name]

    def facet_tags(self, names: str | Sequence[str]) -> dmesh.MeshTags:
        """Tag the facets of ``names[i]`` with i + 1.

        Raises:
            ValueError: for an unknown name, or if two of the parts share facets, of which a tag could only keep one.
        """
        return self._parts.tags([names] if isinstance(names, str) else list(names))

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
        self._mark(name, marker, exact=True)

    def _mark(self, name: str, marker: Marker, exact: bool) -> None:
        self._parts.check_new(name)
        facets = self._parts.marked(name, marker)
        inside = as_inside(marker, f"part {name!r}")
        if not exact or not changes_inside_facets(self, inside):
            self._parts.add_found(name, facets)
            return
        domain, fit = followed(self, name, inside, on_boundary=True)
        if domain is self:
            self._parts.add_found(name, facets)
            return
        if name not in domain.parts:
            self._parts.add_found(name, facets[:0])
        self._became(domain, name, fit)

    def _became(self, domain: "Domain", name: str, fit: Fit | None) -> None:
        """Take over a domain that follows one more marker."""
        defect = self.comm.bcast(fit.defect if fit else None, root=0)
        self.mesh, self._parts, self._regions = domain.mesh, domain._parts, domain._regions
        self.boundary = domain.boundary
        if defect > 0:
            self.defects[name] = defect

    def __repr__(self) -> str:
        cells = self.mesh.topology.index_map(self.dim).size_global
        shape = {1: "intervals", 2: "triangles", 3: "tetrahedra"}[self.dim]
        return f"Domain({self.dim}D, {cells} {shape}, parts: {', '.join(self.parts)})"


def part_names(absorbing: Sequence[str]) -> tuple[str, ...]:
    """Names of absorbing parts, each once."""
    if isinstance(absorbing, str):
        return (absorbing,)
    if not isinstance(absorbing, Iterable):
        raise TypeError(f"absorbing is {absorbing!r}; names of boundary parts were expected, as in ['left'], or [].")
    return tuple(dict.fromkeys(absorbing))
