"""Domains: meshes of intervals, triangles or tetrahedra whose boundary parts have names."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
from dolfinx import default_real_type
from dolfinx import mesh as dmesh

from .._errors import agree
from .._log import logger
from . import _meshes, _meshfile, _refine
from ._meshes import GHOSTS, Facets, Marker
from ._meshfile import RawMesh, on_root

REST = "unnamed"
"""Name of the part that collects the boundary facets which no other part covers."""


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

    Raises:
        ValueError: if the mesh or a part is unsuitable; the same on every rank.
    """

    def __init__(self, mesh: dmesh.Mesh, parts: Mapping[str, npt.ArrayLike | Marker] | None = None):
        self.mesh, self.comm, self.dim = mesh, mesh.comm, mesh.topology.dim
        _meshes.check_mesh(mesh)
        self._boundary = _meshes.find_boundary(mesh)
        self._parts: dict[str, Facets] = {}
        for name, facets in (parts or {}).items():
            if callable(facets):
                self.mark(name, facets)
            else:
                self._add(name, self._check_facets(name, facets))
        if parts is None:
            self._add("boundary", self._boundary.facets)
        elif (count := self._collect_rest()) and parts:
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
        low, high, cells = _meshes.check_box("interval", (a,), (b,), (n,))
        mesh = dmesh.create_interval(comm, cells[0], [low[0], high[0]], ghost_mode=GHOSTS, dtype=default_real_type)
        return cls(mesh, _meshes.sides(low, high, ("left", "right")))

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
        x0, x1, cells = _meshes.check_box("rectangle", low, high, n)
        known = ("crossed", "right", "left", "left_right", "right_left")
        if diagonal not in known:
            raise ValueError(f"Domain.rectangle: diagonal must be one of {', '.join(known)}, got {diagonal!r}")
        mesh = dmesh.create_rectangle(
            comm, [x0, x1], cells, ghost_mode=GHOSTS, diagonal=dmesh.DiagonalType.__members__[diagonal]
        )
        return cls(mesh, _meshes.sides(x0, x1, ("left", "right", "bottom", "top")))

    @classmethod
    def box(
        cls, low: Sequence[float], high: Sequence[float], n: Sequence[int], *, comm: MPI.Comm = MPI.COMM_WORLD
    ) -> "Domain":
        """The box between two corners in n[0] x n[1] x n[2] small ones of six tetrahedra each.

        The parts are left, right (smallest and largest x), front, back (y), bottom, top (z).
        """
        x0, x1, cells = _meshes.check_box("box", low, high, n)
        mesh = dmesh.create_box(comm, [x0, x1], cells, ghost_mode=GHOSTS)
        return cls(mesh, _meshes.sides(x0, x1, ("left", "right", "front", "back", "bottom", "top")))

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
        """
        return cls._round("disk", 2, center, [radius], h, order, comm)

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
        return cls._round("ball", 3, center, [radius], h, order, comm)

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
        return cls._round("annulus", dim, center, [r_inner, r_outer], h, order, comm)

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
        corners = np.asarray(vertices, dtype=float)
        if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
            raise ValueError(f"Domain.polygon: vertices has shape {corners.shape}; expected (n, 2), n >= 3, finite")
        if not np.isfinite(h) or h <= 0:
            raise ValueError(f"Domain.polygon: h must be positive, got {h}")
        parts = {name: [int(i) for i in chosen] for name, chosen in (edges or {}).items()}
        named = [i for chosen in parts.values() for i in chosen]
        if len(set(named)) < len(named) or not set(named) <= set(range(len(corners))):
            raise ValueError(f"Domain.polygon: edges 0 to {len(corners) - 1} may be named once each, got {named}")
        if rest := sorted(set(range(len(corners))) - set(named)):
            parts["wall"] = [*parts.get("wall", []), *rest]
        return cls._distribute(comm, lambda: _meshfile.polygon_geometry(corners, float(h), parts))

    @classmethod
    def _round(
        cls, kind: str, dim: int, center: Sequence[float], radii: list[float], h: float, order: int, comm: MPI.Comm
    ) -> "Domain":
        where = f"Domain.{kind}"
        if len(center) != dim:
            raise ValueError(f"{where}: center must have {dim} coordinates, got {center}")
        values = _meshes.check_finite(where, center=center, radius=radii, h=[h])
        if h <= 0 or radii[0] <= 0:
            raise ValueError(f"{where}: radii and h must be positive, got {radii} and {h}")
        if len(radii) == 2 and radii[0] >= radii[1]:
            raise ValueError(f"{where}: r_inner must be smaller than r_outer, got {radii[0]} and {radii[1]}")
        if order not in (1, 2, 3):
            raise ValueError(f"{where}: order must be 1, 2 or 3, got {order}")
        return cls._distribute(
            comm, lambda: _meshfile.round_geometry(kind, dim, values["center"], values["radius"], float(h), order)
        )

    @classmethod
    def read(cls, path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> "Domain":
        """Read a mesh file; its named boundary parts keep their names.

        A ``.msh`` file must have physical names for parts of the boundary.  An ``.xdmf`` file of
        :func:`fpsolver.io.write_domain` comes back on any number of ranks.  Everything else goes through meshio: named
        sets of facets become parts, and where the file knows none, the whole boundary is the part "boundary", to be
        divided by :meth:`mark`.  Boundary facets that the named parts leave over become the part "unnamed".

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file cannot be used, with the reason.
            ModuleNotFoundError: if gmsh or meshio is needed and missing.
        """
        path = Path(path)
        names = comm.bcast(on_root(comm, lambda: _meshfile.inspect(path)), root=0)
        if names is not None:
            return cls(*_meshes.read_xdmf(path, names, comm))
        reader = _meshfile.read_gmsh if path.suffix == ".msh" else _meshfile.read_meshio
        return cls._distribute(comm, lambda: reader(path))

    @classmethod
    def _distribute(cls, comm: MPI.Comm, work: Callable[[], RawMesh]) -> "Domain":
        """Make a domain of the arrays that ``work`` gives on rank 0."""
        raw = on_root(comm, work)
        header = (raw.dim, raw.degree, raw.cells.shape[1], raw.facets) if raw else None
        dim, degree, nodes, named = comm.bcast(header, root=0)
        cells, x = (raw.cells, raw.points) if raw else (np.empty((0, nodes), np.int64), np.empty((0, dim)))
        mesh = _meshes.create_mesh(comm, cells, x, dim, degree)
        domain = cls(mesh)
        if named:
            domain._rename(named)
        return domain

    def _rename(self, named: Mapping[str, npt.NDArray[np.int64]]) -> None:
        """Divide the boundary anew: parts by the nodes, in the order of input, of the vertices of their facets."""
        self._parts = {}
        for name, facets in named.items():
            found = self._boundary.find(self.mesh, facets)
            missing = len(facets) - self.comm.allreduce(len(found))
            if missing:
                logger.warning(
                    "%d of %d facets of the part %r are not on the boundary: left out", missing, len(facets), name
                )
            if missing < len(facets):
                self._add(name, found)
        if count := self._collect_rest():
            logger.info("%d boundary facets belong to no named part: they form the part %r", count, REST)

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
        found = np.unique(np.asarray(cells).ravel())
        owned = self.mesh.topology.index_map(self.dim).size_local
        problem = None
        if found.size and not np.issubdtype(found.dtype, np.integer):
            problem = f"the cells to refine must be given by their indices, got {found.dtype}"
        elif found.size and (found[0] < 0 or found[-1] >= owned):
            problem = f"cells from {found[0]} to {found[-1]} were to be refined, but this rank owns {owned} cells"
        agree(self.comm, problem)
        mesh, named = _refine.refine(self.mesh, found.astype(np.int32), self._parts)
        domain = Domain(mesh)
        domain._rename({name: np.concatenate(self.comm.allgather(facets)) for name, facets in named.items()})
        return domain

    # -- Boundary parts

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the boundary parts, in the same order on every rank."""
        return tuple(self._parts)

    def facets(self, name: str) -> Facets:
        """Sorted local indices of the boundary facets of a part that this rank owns."""
        self._check_names([name])
        return self._parts[name]

    def facet_tags(self, names: str | Sequence[str]) -> dmesh.MeshTags:
        """Tag the facets of ``names[i]`` with i + 1.

        Raises:
            ValueError: for an unknown name, or if two of the parts share facets, of which a tag could only keep one.
        """
        names = [names] if isinstance(names, str) else list(names)
        self._check_names(names)
        parts = [self._parts[name] for name in names]
        problem = None
        for i, a in enumerate(names):
            for b in names[:i]:
                if np.intersect1d(self._parts[a], self._parts[b]).size:
                    problem = f"the parts {b!r} and {a!r} share facets; use one of them, or parts that do not overlap"
        agree(self.comm, problem)
        facets = np.concatenate([np.empty(0, np.int32), *parts])
        values = np.repeat(np.arange(1, len(names) + 1, dtype=np.int32), [len(part) for part in parts])
        order = np.argsort(facets)
        return dmesh.meshtags(self.mesh, self.dim - 1, facets[order].astype(np.int32), values[order])

    def integration_facets(self, name: str) -> npt.NDArray[np.int32]:
        """A part as DOLFINx integrates over it: cell, local facet, cell, local facet, ... on this rank.

        ``ufl.ds(subdomain_data=[(1, domain.integration_facets("left"))])`` also serves parts that overlap.
        """
        where = np.searchsorted(self._boundary.facets, self.facets(name))
        pairs = np.column_stack((self._boundary.cells[where], self._boundary.local[where]))
        return pairs.astype(np.int32).ravel()

    def mark(self, name: str, marker: Marker) -> None:
        """Name a further part of the boundary, which may overlap with others.

        Args:
            name: a name that is not yet used.
            marker: takes points x of shape (dim, n), so that x[i] is the i-th coordinate, and returns n booleans.
                A boundary facet belongs to the part if the marker holds at its midpoint (so that ``x[0] > 1.9`` and
                ``x[0] <= 1.9`` split the boundary), or at all its vertices (which alone lie on a curved boundary).

        Raises:
            ValueError: if the name is used, the marker does not return n booleans, or no boundary facet matches.
        """
        try:
            problem, chosen = None, self._boundary.marked(marker)
        except Exception as e:
            problem, chosen = f"the marker of the part {name!r} {e}", self._boundary.facets[:0]
        agree(self.comm, problem)
        where = self._boundary.extent(self.comm)
        self._add(name, chosen, f"its marker holds on no boundary facet; the boundary lies in {where}")

    def _add(self, name: str, facets: Facets, why_empty: str = "it has no facet on the boundary") -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a boundary part must be a non-empty string, got {name!r}")
        if name in self._parts:
            raise ValueError(f"there is a boundary part {name!r} already; the parts are {', '.join(self.parts)}")
        if self.comm.allreduce(len(facets)) == 0:
            raise ValueError(f"the boundary part {name!r} is empty: {why_empty}")
        facets = np.array(facets, dtype=np.int32)
        facets.flags.writeable = False
        self._parts[name] = facets

    def _collect_rest(self) -> int:
        """Give the facets without a name one, and return how many there are on all ranks."""
        named = np.concatenate([self._boundary.facets[:0], *self._parts.values()])
        rest = np.setdiff1d(self._boundary.facets, named)
        count = self.comm.allreduce(len(rest))
        if count and REST not in self._parts:
            self._add(REST, rest)
        return count

    def _check_names(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._parts:
                raise ValueError(f"no boundary part is called {name!r}; the parts are {', '.join(self.parts)}")
        if len(set(names)) < len(names):
            raise ValueError(f"a boundary part is named twice in {names}")

    def _check_facets(self, name: str, facets: npt.ArrayLike) -> Facets:
        """Facets of a part as given by the user, those of other ranks dropped."""
        index_map = self.mesh.topology.index_map(self.dim - 1)
        owned, known = index_map.size_local, index_map.size_local + index_map.num_ghosts
        found, problem = np.unique(np.asarray(facets).ravel()), None
        if found.size and not np.issubdtype(found.dtype, np.integer):
            problem = f"the facets of the part {name!r} must be integers, got {found.dtype}"
        elif found.size and (found[0] < 0 or found[-1] >= known):
            problem = f"the part {name!r} has facets from {found[0]} to {found[-1]}, but this rank knows {known} facets"
        else:
            found = found[found < owned].astype(np.int32)
            if inside := int((~np.isin(found, self._boundary.facets)).sum()):
                problem = f"{inside} facets of the part {name!r} are not on the boundary"
        agree(self.comm, problem)
        return found

    def __repr__(self) -> str:
        cells = self.mesh.topology.index_map(self.dim).size_global
        shape = {1: "intervals", 2: "triangles", 3: "tetrahedra"}[self.dim]
        return f"Domain({self.dim}D, {cells} {shape}, parts: {', '.join(self.parts)})"
