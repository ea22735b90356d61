"""Fields and domains in files: VTX and XDMF for ParaView, npz for everything else."""

import ctypes
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
from dolfinx import fem
from dolfinx import io as dio
from dolfinx import mesh as dmesh

from . import _compat
from ._errors import on_root, together
from ._files import SPARE, staged, store
from ._sample import degree, lagrange, own_cells
from .domains.domain import Domain
from .domains.meshfile import UNSIGNED, XDMF_KEY, sign

SUFFIXES = {".bp": "VTX (ADIOS2)", ".xdmf": "XDMF", ".npz": "NumPy"}
Fields: TypeAlias = Any  # a function, a list of functions or a dictionary of functions, see write()


def write(path: str | Path, functions: Fields, times: Sequence[float] | None = None) -> None:
    """Write functions to a file whose type follows from its suffix (collective).

    ======== ===========================================================================================
    .bp      VTX, for ParaView: every degree, continuous or not, as it is (needs DOLFINx with ADIOS2)
    .xdmf    XDMF, for ParaView: the values at the nodes of the mesh, averaged where the function jumps
    .npz     NumPy: ``points`` (n, dim), ``cells`` (m, nodes per cell), ``times`` and under each name the values
             (times, n), or (times, n, components); gathered on rank 0
    ======== ===========================================================================================

    The file gets its name when it is whole, and where writing fails, a file of that name stays as it was.

    Missing folders are created.  ``functions`` is a function, a list of functions with different names, or a dictionary
    {name: function}, where whatever has an attribute ``function`` (a solution) is a function too.  With increasing
    ``times``, one of these for each; an object that has ``times`` itself (an evolution) is enough alone.

    Raises:
        ValueError: for an unknown suffix, or functions that cannot be written.
        OSError: the file cannot be written, with its name and the reason.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown file type {path.suffix!r}; known are {', '.join(SUFFIXES)}")
    if path.suffix == ".bp" and not dolfinx.has_adios2:
        raise ValueError(f"{path}: this DOLFINx was built without ADIOS2; write .xdmf or .npz instead")
    if times is None and hasattr(functions, "times"):
        times, name = functions.times, str(getattr(functions, "name", "solution")).replace(" ", "_")
        functions = [{name: functions[i]} for i in range(len(functions))]
    steps = functions if times is not None else [functions]
    times = [0.0] if times is None else times
    if len(times) != len(steps) or not len(times):
        raise ValueError(f"{path}: {len(times)} times, but {len(steps)} entries to write; expected one for each time")
    series = [_named(steps[i], path) for i in range(len(times))]
    for i, fields in enumerate(series):
        if fields.keys() != series[0].keys():
            if isinstance(steps[i], Mapping) or len(fields) != len(series[0]):
                raise ValueError(f"{path} holds {', '.join(series[0])}; it cannot also take {', '.join(fields)}")
            series[i] = dict(zip(series[0], fields.values(), strict=True))  # solutions may be named after their times
    held = _held(path, series)

    def frames() -> Iterator[float]:
        for t, fields in zip(times, series, strict=True):
            for target in held:
                _transfer(fields[target.name], target)
            yield t

    (_write_npz if path.suffix == ".npz" else _write_parallel)(path, held, frames(), len(times))


def _held(path: Path, series: list[dict[str, fem.Function]]) -> list[fem.Function]:
    """Functions that take the fields of one time after the other, all in spaces that the file has."""
    fields, suffix = series[0], path.suffix
    mesh = next(iter(fields.values())).function_space.mesh
    shapes = {name: tuple(f.function_space.value_shape) for name, f in fields.items()}
    if any(f.function_space.mesh is not mesh for some in series for f in some.values()):
        raise ValueError(f"{path}: the functions {', '.join(fields)} live on different meshes; use a file for each")
    if suffix == ".bp" and len(set(shapes.values())) > 1:
        raise ValueError(f"{path}: scalars and vectors cannot share a .bp file; use a file for each")
    if suffix == ".npz" and (reserved := {"points", "cells", "times"} & fields.keys()):
        raise ValueError(f"{path}: a function in a .npz file cannot be called {reserved.pop()!r}")
    if suffix == ".xdmf":
        family, k = "Lagrange", _xdmf_order(path, mesh)
    else:  # what holds all of them
        kinds = [lagrange(f.function_space) or ("DG", degree(f.function_space)) for f in fields.values()]
        family, k = min(kind for kind, _ in kinds), max(k for _, k in kinds)
    return [fem.Function(fem.functionspace(mesh, (family, k, shape)), name=name) for name, shape in shapes.items()]


def _write_npz(path: Path, held: list[fem.Function], frames: Iterator[float], _: int) -> None:
    V = held[0].function_space
    mesh, index, cells = V.mesh, V.dofmap.index_map, V.dofmap.list[own_cells(V.mesh)]
    table: dict[str, Any] = {f.name: [] for f in held} | {"times": []}
    table["points"] = _stacked(mesh.comm, V.tabulate_dof_coordinates()[: index.size_local, : mesh.geometry.dim])
    table["cells"] = _stacked(mesh.comm, index.local_to_global(cells.ravel()).reshape(cells.shape))
    for t in frames:
        table["times"].append(t)
        for f in held:
            components = f.function_space.dofmap.index_map_bs
            values = _stacked(mesh.comm, f.x.array[: index.size_local * components])
            table[f.name].append(values if values is None or components == 1 else values.reshape(-1, components))
    on_root(mesh.comm, lambda: store(path, lambda file: np.savez_compressed(file, **table)))


def _write_parallel(path: Path, held: list[fem.Function], frames: Iterator[float], times: int) -> None:
    V = held[0].function_space
    mesh, comm = V.mesh, V.mesh.comm
    nodes = mesh.geometry.x.nbytes + 3 * V.tabulate_dof_coordinates().nbytes
    size = nodes + 8 * (V.dofmap.list.size + _compat.geometry_dofmap(mesh).size)
    with staged(comm, path, size + times * (sum(f.x.array.nbytes for f in held) + SPARE)) as place:
        with together(comm):
            file: Any = (
                dio.VTXWriter(comm, str(place), held, mesh_policy=dio.VTXMeshPolicy.reuse)
                if path.suffix == ".bp"
                else dio.XDMFFile(comm, str(place), "w")
            )
        try:
            if path.suffix == ".xdmf":
                with together(comm):
                    file.write_mesh(mesh)
            for t in frames:
                with together(comm):
                    if path.suffix == ".bp":
                        file.write(t)
                    else:
                        for f in held:
                            file.write_function(f, t)
            with together(comm):
                file.close()
        except BaseException:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(file))  # its destructor would end the process
            raise


def write_domain(path: str | Path, domain: Domain) -> None:
    """Write a mesh and the names of its boundary parts to an .xdmf file (and the .h5 file that belongs to it).

    :meth:`fpsolver.Domain.read` reads it on any number of ranks, and refuses files that have changed since.  ParaView
    shows the parts as the field "parts" on the boundary: part i of ``domain.parts`` adds 2^i.
    """
    path = Path(path)
    if path.suffix != ".xdmf":
        raise ValueError(f"{path}: domains are written as .xdmf, not {path.suffix!r}")
    if domain.periods is not None:
        raise ValueError(f"{path}: the file would not say which sides of a periodic domain are one; make it again")
    mesh, dim = domain.mesh, domain.dim
    _xdmf_order(path, mesh)
    if len(domain.parts) > 31:
        raise ValueError(f"{path}: at most 31 boundary parts can be written, got {len(domain.parts)}")
    facets = np.unique(np.concatenate([domain.facets(name) for name in domain.parts]))
    values = np.zeros(len(facets), dtype=np.int32)
    for i, name in enumerate(domain.parts):
        values[np.isin(facets, domain.facets(name))] += 1 << i
    tags = dmesh.meshtags(mesh, dim - 1, facets.astype(np.int32), values)
    tags.name = "parts"
    size = mesh.geometry.x.nbytes + 8 * (_compat.geometry_dofmap(mesh).size + (dim + 1) * len(facets))
    before, mesh.name = mesh.name, "mesh"
    try:
        with staged(domain.comm, path, size) as place:
            with dio.XDMFFile(domain.comm, str(place), "w") as file:
                file.write_mesh(mesh)
                file.write_meshtags(tags, mesh.geometry)
                file.write_information(XDMF_KEY, json.dumps({"parts": domain.parts, "sha256": UNSIGNED}))
            on_root(domain.comm, lambda: sign(place))
    finally:
        mesh.name = before


def _xdmf_order(path: Path, mesh: dmesh.Mesh) -> int:
    if (order := _compat.coordinate_map(mesh).degree) > 2:
        raise ValueError(
            f"{path}: XDMF has no cells of degree {order}; write .bp, or make the mesh with cells of order 2"
        )
    return order


def _named(functions: Fields, path: Path) -> dict[str, fem.Function]:
    """The functions to write, by name."""
    many = functions if isinstance(functions, Mapping | list | tuple) else [functions]
    found = [getattr(f, "function", f) for f in (many.values() if isinstance(many, Mapping) else many)]
    names = list(many) if isinstance(many, Mapping) else [getattr(f, "name", "") for f in found]
    for name, f in zip(names, found, strict=True):
        if not isinstance(f, fem.Function):
            entry = repr(name or "an entry")
            raise ValueError(f"{path}: DOLFINx functions or solutions were expected, but {entry} is {type(f).__name__}")
    if not names:
        raise ValueError(f"{path}: there is nothing to write")
    if len(set(names)) < len(names):
        repeated = ", ".join(names)
        raise ValueError(f"{path}: several functions have the same name ({repeated}); give a dict {{name: function}}")
    return dict(zip(names, found, strict=True))


def _transfer(f: fem.Function, held: fem.Function) -> None:
    """Give ``held`` the values of ``f``: at nodes of a continuous space the mean of cells, whatever ranks there are."""
    P, (family, k) = held.function_space, lagrange(held.function_space) or ("", 0)
    if family == "DG" or (lagrange(f.function_space) or ("DG",))[0] != "DG":
        held.interpolate(f)
        held.x.scatter_forward()
        return
    cellwise, count = fem.Function(fem.functionspace(P.mesh, ("DG", k, tuple(P.value_shape)))), fem.Function(P)
    cellwise.interpolate(f)
    cells, bs = own_cells(P.mesh), P.dofmap.index_map_bs
    nodes, mine = P.dofmap.list[cells], cellwise.function_space.dofmap.list[cells]
    held.x.array[:] = 0.0
    for g, values in ((held, cellwise.x.array.reshape(-1, bs)[mine]), (count, 1.0)):
        np.add.at(g.x.array.reshape(-1, bs), nodes, values)
        g.x.scatter_reverse(dolfinx.la.InsertMode.add)
        g.x.scatter_forward()
    held.x.array[:] /= count.x.array


def _stacked(comm: MPI.Comm, mine: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """The rows of all ranks, on rank 0."""
    pieces = comm.gather(mine, root=0)
    return None if pieces is None else np.concatenate(pieces)
