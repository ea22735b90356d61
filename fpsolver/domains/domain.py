"""Domains: meshes of intervals, triangles or tetrahedra whose boundary parts have names."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
from dolfinx import mesh as dmesh

from .. import _compat
from .._arguments import expect
from .._errors import on_root, together
from .._log import logger
from . import _gmsh, _meshes, _refine, meshfile
from ._fit import ACCURACY, changes_inside_facets, followed
from ._gmsh import HIGHEST, RoundShape
from .regions import Facets, Marker, as_inside, check_new, find_boundary, marker_of

Point = Sequence[float]

REST = "unnamed"  # the part that collects the boundary facets which no other part covers


class Domain:
    """A mesh whose boundary parts have names (collective, like every method that takes a name or a marker).

    Args:
        mesh: simplices of full dimension (triangles in the plane, not on a surface), with shared facets as ghosts.
        parts: for each name the local indices of its facets (``tags.find(5)``), or a marker as in :meth:`mark`; by
            default the whole boundary is one part called "boundary".  What no part covers becomes the part "unnamed".

    Attributes:
        mesh, comm, dim: the DOLFINx mesh, its communicator, the dimension of its cells and of space.
        boundary: this rank's facets of the boundary, with their cells and corners.
        defects: for each part that the mesh only approximates, the measure by which it is missed.
        periods: ends of the periodic coordinates, shape (dim, 2) with NaN elsewhere; None if there are none.

    Raises:
        ValueError: if the mesh or a part is unsuitable; the same on every rank.
    """

    def __init__(self, mesh: dmesh.Mesh, parts: Mapping[str, npt.ArrayLike | Marker] | None = None):
        self.mesh, self.comm, self.dim = mesh, mesh.comm, mesh.topology.dim
        _meshes.check_mesh(mesh)
        self.boundary = find_boundary(mesh)
        self.defects: dict[str, float] = {}
        self.periods: npt.NDArray[np.float64] | None = None
        self._parts: dict[str, Facets] = {}
        self._regions: dict[str, Facets] = {}
        self._round: RoundShape | None = None
        everything = {"boundary": self.boundary.facets} if self.comm.allreduce(len(self.boundary.facets)) else {}
        for name, facets in (everything if parts is None else parts).items():
            if callable(facets):
                self.mark(name, facets)
            else:
                check_new(name, self.parts)
                self._parts[name] = self.boundary.part(name, self.boundary.given(facets, name))
        if REST not in (parts or {}):
            self._parts.pop(REST, None)  # of the domain while it had fewer parts
            rest = self.boundary.facets[~np.isin(self.boundary.facets, list(itertools.chain(*self._parts.values())))]
            if count := self.comm.allreduce(len(rest)):
                logger.info("%d boundary facets belong to no named part: they form the part %r", count, REST)
                self._parts[REST] = self.boundary.part(REST, rest)

    # -- Constructors

    @classmethod
    def interval(
        cls, a: float, b: float, n: int, *, periodic: bool = False, comm: MPI.Comm = MPI.COMM_WORLD
    ) -> "Domain":
        """The interval [a, b] in n cells; parts left, right.  ``periodic``: b is a again, as for an angle."""
        return cls._of(_meshes.box("interval", comm, (a,), (b,), (n,), (periodic,)))

    @classmethod
    def rectangle(
        cls, low: Point, high: Point, n: Sequence[int], *, diagonal: str = "crossed",
        periodic: Sequence[bool] = (False, False), comm: MPI.Comm = MPI.COMM_WORLD,
    ) -> "Domain":  # fmt: skip
        """The rectangle between two corners in n[0] x n[1] small ones; parts left, right, bottom, top.

        ``diagonal`` is how they are cut into triangles: "crossed" (four each, the default: symmetric in x and in y for
        every n, and no triangle has all its vertices on the boundary), "right", "left" or "left_right" (two each).

        ``periodic`` says of each coordinate whether its two sides are one: there is no part there, and drift and
        diffusion must have that period.  At least three cells are needed in that direction.  Answers are evaluated
        between the two ends; paths of :func:`~fpsolver.simulate` keep count of the turns they made.
        """
        return cls._of(_meshes.box("rectangle", comm, low, high, n, periodic, diagonal))

    @classmethod
    def box(
        cls, low: Point, high: Point, n: Sequence[int], *, periodic: Sequence[bool] = (False, False, False),
        comm: MPI.Comm = MPI.COMM_WORLD,
    ) -> "Domain":  # fmt: skip
        """The box between two corners in n[0] x n[1] x n[2] ones; left, right (x), front, back (y), bottom, top (z)."""
        return cls._of(_meshes.box("box", comm, low, high, n, periodic))

    @classmethod
    def disk(cls, center: Point, radius: float, h: float, *, comm: MPI.Comm = MPI.COMM_WORLD) -> "Domain":
        """A disk in triangles of size h; its one part is called boundary (needs gmsh).

        Cells follow the circle by quadratic polynomials, whose nodes between vertices are where they make the area
        exact: what the shape changes in answers is of order h^6 (exit time at h = 0.3: 5e-9), and part of error bars.
        """
        return cls._round_domain("disk", 2, center, [radius], h, comm)

    @classmethod
    def ball(cls, center: Point, radius: float, h: float, *, comm: MPI.Comm = MPI.COMM_WORLD) -> "Domain":
        """A ball in tetrahedra, as :meth:`disk` (volume at h = 0.3: 3e-9)."""
        return cls._round_domain("ball", 3, center, [radius], h, comm)

    @classmethod
    def annulus(
        cls, center: Point, r_inner: float, r_outer: float, h: float, *, comm: MPI.Comm = MPI.COMM_WORLD
    ) -> "Domain":
        """What lies between two concentric circles, or spheres, as :meth:`disk`; parts inner and outer."""
        expect("Domain.annulus: r_inner", r_inner, f"a smaller one than r_outer = {r_outer}", r_inner < r_outer)
        return cls._round_domain("annulus", 3 if len(center) == 3 else 2, center, [r_inner, r_outer], h, comm)

    @classmethod
    def _round_domain(cls, kind: str, dim: int, center: Point, radii: list[float], h: float, comm: MPI.Comm) -> Self:
        made = _meshes.distribute(comm, lambda: _gmsh.round_geometry(f"Domain.{kind}", dim, center, radii, h))
        return cls._of(made, RoundShape(np.array(center, float), tuple(radii), h))

    @classmethod
    def polygon(
        cls, vertices: npt.ArrayLike, h: float, edges: Mapping[str, Sequence[int]] | None = None,
        *, comm: MPI.Comm = MPI.COMM_WORLD,
    ) -> "Domain":  # fmt: skip
        """A polygon, such as a basin of attraction, in triangles of size h or its edges, if they are shorter (gmsh).

        ``vertices`` are its corners in order around it, shape (n, 2), ``edges`` names of parts with numbers of edges:
        edge i joins vertex i to vertex i + 1, the last one to the first.  The others form the part "wall".

        Raises:
            ValueError: fewer than three vertices, unknown or repeated edges, a polygon that crosses itself.
        """
        return cls._of(_meshes.distribute(comm, lambda: _gmsh.polygon_geometry(vertices, h, edges)))

    @classmethod
    def read(cls, path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> "Domain":
        """Read a mesh file; its parts keep their names or, where it has no names, their numbers as names ("5").

        A ``.msh`` file must have physical groups for parts of the boundary.  What is neither that nor an ``.xdmf`` file
        of :func:`fpsolver.io.write_domain` goes through meshio: sets of facets become parts, those of cells regions.
        Error bars say nothing of how far the cells are from the shape that was meshed.

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
        return cls._of(_meshes.distribute(comm, lambda: reader(path)))

    @classmethod
    def _of(cls, made: _meshes.Made, shape: RoundShape | None = None) -> Self:
        domain = cls(made.mesh, made.parts)
        domain._regions, domain.periods, domain._round = made.regions, made.periods, shape
        return domain

    # -- Refinement

    def refine(self, cells: npt.ArrayLike) -> "Domain":
        """A domain whose mesh is finer in some cells, with the same parts (collective).

        Each of these cells, given by local indices of those that this rank owns, is divided into 2^dim, its neighbours
        as far as the mesh needs to conform.  Curved cells keep their curve, and all are distributed afresh.

        Raises:
            ValueError: something else than indices of owned cells.
        """
        # quadratic cells keep their curve, which makes the volume exact; those of higher degree follow the circle
        follow = self._round if _compat.coordinate_map(self.mesh).degree > 2 else None
        return self._divided(cells, self._round, move=follow and follow.snapped)

    def closer(self) -> "Domain | None":
        """The same cells with polynomials of a higher degree that follow the shape (collective).

        Answers on it tell how much the shape matters.  None for boxes, polygons and files, and after :meth:`mapped`.
        """
        degree, shape = _compat.coordinate_map(self.mesh).degree, self._round
        if shape is None or degree >= HIGHEST:
            return None
        return self._divided([], shape, degree=degree + 2, move=shape.snapped)

    def straightened(self) -> "Domain":
        """The same with straight cells, which follow curves by chords: an error of order h² (collective)."""
        return self._divided([], None, degree=1)

    def mapped(self, f: _refine.Move) -> "Domain":
        """A domain whose nodes are where a map takes those of this one, with the same parts (collective).

        ``f`` takes points x of shape (dim, n) and returns as many, as ``lambda x: (x[0] ** 3, 2 * x[1])`` does.  Cells
        stay polynomials of their degree: straight edges stay straight.

        Raises:
            ValueError: it gives something else, fails, or folds cells.
        """
        return self._divided([], None, move=f)

    def _divided(self, cells: npt.ArrayLike, shape: RoundShape | None, **how: Any) -> "Domain":
        share = _refine.refine(self.mesh, cells, self._parts, self._regions, periods=self.periods, **how)
        return self._of(_meshes.assemble(self.comm, share), shape)

    # -- Boundary parts and regions

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the boundary parts, in the same order on every rank."""
        return tuple(self._parts)

    def facets(self, name: str) -> Facets:
        """Sorted local indices of the boundary facets of a part that this rank owns."""
        if name not in self._parts:
            inside = f", the regions inside {', '.join(self.regions)}" if self.regions else ""
            raise ValueError(f"no boundary part is called {name!r}; the parts are {', '.join(self.parts)}{inside}")
        return self._parts[name]

    def integration_facets(self, name: str) -> npt.NDArray[np.int32]:
        """A part as ``ufl.ds(subdomain_data=[(1, ...)])`` takes it: cell, local facet, cell, ... on this rank."""
        where = np.searchsorted(self.boundary.facets, self.facets(name))
        return np.stack((self.boundary.cells[where], self.boundary.local[where]), axis=1).astype(np.int32).ravel()

    def mark(self, name: str, marker: Marker) -> None:
        """Name a further part of the boundary, which may overlap with others, exactly to where the marker ends.

        Where it ends inside facets, the mesh is replaced by one whose cells are cut there; generators that use the
        domain already keep theirs.  In one and two dimensions the ends are right to 1e-10 of the size of the domain.
        In three, the rim is followed by chords, and cells there are refined, four times at most, until these miss
        less than 1e-4 of the part; :attr:`defects` says how much.  What a marker reaches around a corner by less than
        2e-3 of the size, as ``x[1] > 0.999`` does, is no part of it.

        ``marker`` takes points x of shape (dim, n), so that x[i] is the i-th coordinate, and returns n booleans.  On
        curved boundaries it should also hold near the curve, or at least at all vertices.

        Raises:
            ValueError: if the name is used, the marker does not return n booleans, or no boundary facet matches.
        """
        check_new(name, self.parts)
        inside = as_inside(marker, f"part {name!r}")
        with together(self.comm):
            facets = self.boundary.marked(inside)
            ends = changes_inside_facets(self, inside)
        domain, defect = self, 0.0
        if self.comm.allreduce(ends, op=MPI.LOR):
            domain, defect, _ = followed(self, name, inside, on_boundary=True)
        if domain is self or name not in domain.parts:
            self._parts[name] = self.boundary.part(name, facets)
        else:
            vars(self).update(vars(domain), defects=self.defects)
        if defect > 0:
            self.defects[name] = defect

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of regions inside: groups of cells of a mesh file, and those of :meth:`with_region`."""
        return tuple(self._regions)

    def cells(self, region: str) -> Facets:
        """Sorted local indices of the cells of a region, those that other ranks own included."""
        expect("the region", region, f"one of {', '.join(self.regions) or 'none'}", region in self._regions)
        return self._regions[region]

    def with_region(self, name: str, region: Any) -> "Domain":
        """A domain in which a region is a set of whole cells, cut at its edge, with a name (collective).

        Verbs that take regions take the name.  Its ends, and straight edges away from their corners, are right to 1e-10
        of the size of the domain.  Curves are followed by chords; cells there are refined until what lies between is
        below 1e-4 of the region, and a warning says so if it is not.  ``region`` is a ball (centre, radius), the
        corners of a polygon in the plane, shape (n, 2), or a marker of points x of shape (dim, n).

        Raises:
            ValueError: the name is used, the region is something else, or its marker does not return n booleans.
        """
        check_new(name, self.parts + self.regions)
        return self.following(region, name)

    def following(self, region: Any, name: str) -> "Domain":
        """The same; a region of this name is replaced (collective)."""
        inside = as_inside(marker_of(region, self.dim, name), f"region {name!r}")
        domain, defect, size = followed(self, name, inside, on_boundary=False)
        if defect > ACCURACY * size:
            message = "the region %r of size %.4g is followed to %.1e only: refine the domain at its edge"
            logger.warning(message, name, size, defect)
        if defect > 0:
            domain.defects[name] = defect
        return domain

    def __repr__(self) -> str:
        cells = self.mesh.topology.index_map(self.dim).size_global
        shape = {1: "intervals", 2: "triangles", 3: "tetrahedra"}[self.dim]
        return f"Domain({self.dim}D, {cells} {shape}, parts: {', '.join(self.parts)})"
