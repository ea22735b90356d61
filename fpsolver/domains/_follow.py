"""Domains whose meshes follow what is marked: gathered on rank 0, fitted there (_fit.py) and distributed again."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import _compat
from .._errors import on_root, together
from ._arrays import RawMesh
from ._fit import changes, follow
from ._measure import Fit
from ._parts import Inside

if TYPE_CHECKING:
    from .domain import Domain

ACCURACY = 1e-4  # of the measure of what is marked: meshes are refined at its edge until chords are as close
ROUNDS = 4  # of refinement at most


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
    used, points = np.concatenate([s[0] for s in shares]), np.vstack([s[1] for s in shares])
    unique, where = np.unique(used, return_index=True)

    def renumbered(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.searchsorted(unique, rows)

    return RawMesh(
        points[where],
        renumbered(np.vstack([s[2] for s in shares])),
        _compat.coordinate_map(mesh).degree,
        {name: renumbered(np.vstack([s[3][name] for s in shares])) for name in domain.parts},
        {name: np.concatenate([s[4][name] for s in shares]) for name in groups},
        domain.periods,
    )


def changes_inside_facets(domain: "Domain", inside: Inside) -> bool:
    """Whether a marker changes inside a facet of the boundary, corners included (collective)."""
    mesh, boundary = domain.mesh, domain.boundary
    some = False
    if len(boundary.facets) and domain.dim > 1:
        cells = _compat.geometry_dofmap(mesh)[np.unique(boundary.cells)].astype(np.int64)
        raw = RawMesh(mesh.geometry.x[:, : domain.dim], cells, _compat.coordinate_map(mesh).degree, {})
        some = len(changes(raw, inside, boundary.nodes.astype(np.int64), corners=False)[0]) > 0
    return bool(domain.comm.allreduce(int(some)))


def followed(domain: "Domain", name: str, inside: Inside, on_boundary: bool) -> tuple["Domain", Fit | None]:
    """A domain in which a marked part or region is a set of facets or cells, refined where chords are too far off."""
    comm = domain.comm
    turn = 0
    while True:
        raw = gathered(domain)
        fit = on_root(comm, lambda raw=raw: follow(raw, inside, on_boundary))  # type: ignore[misc]
        coarse, levels = comm.bcast(_coarse(fit) if fit else None, root=0)
        if not len(coarse) or turn >= ROUNDS:
            break
        # the rim of a part may become exact on the way, when edges meet its corners
        levels = 1 if on_boundary else min(levels, ROUNDS - turn)
        domain, turn = _refined(domain, coarse, levels, inside), turn + levels
    share = None
    if fit:
        unchanged = np.array_equal(fit.raw.points, raw.points) and np.array_equal(fit.raw.cells, raw.cells)  # type: ignore[union-attr]
    if on_boundary and comm.bcast(fit is not None and turn == 0 and unchanged, root=0):
        return domain, fit  # whose numbers of facets somebody may hold
    if fit:
        share = fit.raw
        if fit.surface is None:
            share.groups[name] = np.flatnonzero(fit.inside)  # whose edge the next region leaves where it is
        else:
            share.facets[name] = fit.surface[fit.inside]
    return domain._distributed(share), fit


def _coarse(fit: Fit) -> tuple[npt.NDArray[np.int64], int]:
    """Cells to refine, and how often: what chords miss falls by four each time."""
    if fit.size == 0 or not fit.defect > ACCURACY * fit.size:
        return fit.coarse[: 0 if fit.size else None], 1
    return fit.coarse, int(np.ceil(0.5 * np.log2(fit.defect / (ACCURACY * fit.size))))


def _refined(domain: "Domain", coarse: npt.NDArray[np.int64], levels: int, inside: Inside) -> "Domain":
    """Refine cells, counted over all ranks, and those of their children in which the marker changes (collective)."""
    name = "cells at the edge"
    owned = domain.mesh.topology.index_map(domain.dim).size_local
    first = sum(domain.comm.allgather(owned)[: domain.comm.rank])
    mine = (coarse[(coarse >= first) & (coarse < first + owned)] - first).astype(np.int32)
    for level in range(levels):
        domain = domain._divided(mine, watched={name: mine})
        mine = domain._regions.pop(name)
        mine = mine[mine < domain.mesh.topology.index_map(domain.dim).size_local]
        if level < levels - 1:
            x = domain.mesh.geometry.x[_compat.geometry_dofmap(domain.mesh)[mine]][:, : domain.dim + 1, : domain.dim]
            with together(domain.comm):
                values = (
                    inside(x.reshape(-1, domain.dim)).reshape(len(mine), -1) if len(mine) else np.zeros((0, 1), bool)
                )
            mine = mine[values.any(axis=1) != values.all(axis=1)]
    return domain
