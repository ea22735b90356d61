"""Domains whose meshes follow what is marked: gathered on rank 0, fitted there (_fit.py) and distributed again."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import _compat
from .._errors import on_root
from ._arrays import RawMesh
from ._fit import changes, follow
from ._meshes import distribute
from .regions import Inside

if TYPE_CHECKING:
    from .domain import Domain

ROUNDS = 4  # of refinement at most: what chords miss falls by four each time


def gathered(domain: "Domain") -> RawMesh | None:
    """The whole mesh on rank 0, None elsewhere; cells in the order of ranks (collective)."""
    mesh, comm, dim = domain.mesh, domain.comm, domain.dim
    owned = mesh.topology.index_map(dim).size_local
    number = np.asarray(mesh.geometry.input_global_indices)
    cells = number[_compat.geometry_dofmap(mesh)[:owned]]
    first = sum(comm.allgather(owned)[: comm.rank])
    place = {name: np.searchsorted(domain.boundary.facets, domain.facets(name)) for name in domain.parts}
    facets = {name: number[domain.boundary.nodes[at]] for name, at in place.items()}
    groups = {name: first + rows[rows < owned] for name, rows in domain._regions.items()}
    shares = comm.gather((number, mesh.geometry.x[:, :dim], cells, facets, groups), root=0)
    if shares is None:
        return None
    used, points, cells = (np.concatenate([s[i] for s in shares]) for i in range(3))
    unique, where = np.unique(used, return_index=True)

    def renumbered(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(unique, rows)

    facets = {name: renumbered(np.vstack([s[3][name] for s in shares])) for name in facets}
    groups = {name: np.concatenate([s[4][name] for s in shares]) for name in groups}
    degree = _compat.coordinate_map(mesh).degree
    return RawMesh(points[where], renumbered(cells), degree, facets, groups, domain.periods)


def changes_inside_facets(domain: "Domain", inside: Inside) -> bool:
    """Whether a marker changes inside a facet of this rank's boundary, corners included."""
    mesh, boundary = domain.mesh, domain.boundary
    if domain.dim == 1 or not len(boundary.facets):
        return False
    cells = _compat.geometry_dofmap(mesh)[np.unique(boundary.cells)].astype(np.int64)
    raw = RawMesh(mesh.geometry.x[:, : domain.dim], cells, _compat.coordinate_map(mesh).degree, {})
    return len(changes(raw, inside, boundary.nodes.astype(np.int64), corners=False)[0]) > 0


def followed(domain: "Domain", name: str, inside: Inside, on_boundary: bool) -> tuple["Domain", float, float]:
    """A domain with a named part or region that follows a marker, what it misses, and its size (collective).

    Refined where chords are too far off; of a part that asks for no change the domain itself.
    """
    comm = domain.comm
    for turn in range(ROUNDS + 1):
        raw = gathered(domain)
        fit = on_root(comm, lambda raw=raw: follow(raw, name, inside, on_boundary))  # type: ignore[misc]
        same = fit and len(fit.raw.cells) == len(raw.cells) and np.array_equal(fit.raw.points, raw.points)  # type: ignore[union-attr]
        defect, size, coarse, same = comm.bcast((fit.defect, fit.size, fit.coarse, same) if fit else None, root=0)
        if same and on_boundary and turn == 0 and not len(coarse):
            return domain, defect, size  # whose numbers of facets somebody may hold
        if not len(coarse) or turn == ROUNDS:
            break
        owned = domain.mesh.topology.index_map(domain.dim).size_local
        mine = coarse - sum(comm.allgather(owned)[: comm.rank])
        domain = domain._divided(mine[(mine >= 0) & (mine < owned)], domain._round)
    return domain._of(distribute(comm, lambda: fit and fit.raw), domain._round), defect, size
