"""Fields and domains in files: VTX and XDMF for ParaView, npz for everything else."""

import ctypes
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from ._files import Staged, store
from ._log import logger
from ._sample import degree, lagrange, own_cells
from .domains.domain import Domain
from .domains.meshfile import UNSIGNED, XDMF_KEY, sign

SUFFIXES = {".bp": "VTX (ADIOS2)", ".xdmf": "XDMF", ".npz": "NumPy"}
"""The file types of :func:`write`."""

Fields: TypeAlias = Any
"""A function, a list of functions or a dictionary of functions, see :func:`write`."""


def write(path: str | Path, functions: Fields, times: Sequence[float] | None = None) -> None:
    """Write functions to a file whose type follows from its suffix (collective).

    ======== ===========================================================================================
    .bp      VTX, for ParaView: every degree, continuous or not, as it is (needs DOLFINx with ADIOS2)
    .xdmf    XDMF, for ParaView: the values at the nodes of the mesh, averaged where the function jumps
    .npz     NumPy: ``points`` (n, dim), ``cells`` (m, nodes per cell), ``times`` and under each name the values
             (times, n), or (times, n, components); gathered on rank 0
    ======== ===========================================================================================

    Args:
        path: the file; missing folders are created.
        functions: a function, a list of functions with different names, or a dictionary {name: function}, where
            whatever has an attribute ``function`` (a solution) is a function too.  With ``times``, one of these for
            each time; an object that has ``times`` itself (an evolution) is enough alone.
        times: increasing times.

    Raises:
        ValueError: for an unknown suffix, or functions that cannot be written.
    """
    if times is None and hasattr(functions, "times"):
        times, name = functions.times, str(getattr(functions, "name", "solution")).replace(" ", "_")
        functions = [{name: functions[i]} for i in range(len(functions))]
    if times is not None and len(times) != len(functions):
        raise ValueError(
            f"{path}: {len(times)} times, but {len(functions)} entries to write; expected one for each time"
        )
    with Writer(path) as writer:
        if times is None:
            writer.write(0.0, functions)
        else:
            for i, t in enumerate(times):
                writer.write(t, functions[i])


class Writer:
    """A file that takes fields at one time after the other: ``with Writer("p.bp") as w: w.write(0.1, {"p": p})``.

    The fields of every time must be as many as the first ones, with the same names if they are in a dictionary.
    Closing is collective, as is everything else.  The file gets its name when it is closed, and until then, or where
    writing fails, a file of that name stays as it was.

    Args:
        path: the file, see :func:`write`.

    Raises:
        OSError: the file cannot be written, with its name and the reason.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.suffix not in SUFFIXES:
            raise ValueError(f"{path}: unknown file type {self.path.suffix!r}; known are {', '.join(SUFFIXES)}")
        if self.path.suffix == ".bp" and not dolfinx.has_adios2:
            raise ValueError(f"{path}: this DOLFINx was built without ADIOS2; write .xdmf or .npz instead")
        self._held: dict[str, fem.Function] = {}
        self._file: Any = None
        self._staged: Staged | None = None
        self._table: dict[str, Any] = {}

    def write(self, t: float, functions: Fields) -> None:
        """Write the fields of one time."""
        fields = _named(functions, self.path)
        if not self._held:
            self._open(fields)
        elif not isinstance(functions, Mapping) and len(fields) == len(self._held):
            fields = dict(zip(self._held, fields.values(), strict=True))  # solutions may be named after their times
        if fields.keys() != self._held.keys():
            raise ValueError(f"{self.path} holds {', '.join(self._held)}; it cannot also take {', '.join(fields)}")
        for name, f in fields.items():
            _transfer(f, self._held[name])
        if self._staged is None:
            self._table["times"].append(t)
            for name, f in self._held.items():
                V = f.function_space
                bs = V.dofmap.index_map_bs
                values = _stacked(V.mesh.comm, f.x.array[: V.dofmap.index_map.size_local * bs])
                self._table[name].append(values if values is None or bs == 1 else values.reshape(-1, bs))
            return
        with self._writing(sum(f.x.array.nbytes for f in self._held.values())):
            if self.path.suffix == ".bp":
                self._file.write(t)
            else:
                for f in self._held.values():
                    self._file.write_function(f, t)

    def _open(self, fields: dict[str, fem.Function]) -> None:
        path, suffix, first = self.path, self.path.suffix, next(iter(fields.values()))
        mesh, comm = first.function_space.mesh, first.function_space.mesh.comm
        shapes = {tuple(f.function_space.value_shape) for f in fields.values()}
        if any(f.function_space.mesh is not mesh for f in fields.values()):
            raise ValueError(f"{path}: the functions {', '.join(fields)} live on different meshes; use a file for each")
        if suffix == ".bp" and len(shapes) > 1:
            raise ValueError(f"{path}: scalars and vectors cannot share a .bp file; use a file for each")
        if suffix == ".npz" and (reserved := {"points", "cells", "times"} & fields.keys()):
            raise ValueError(f"{path}: a function in a .npz file cannot be called {reserved.pop()!r}")
        family, k = ("Lagrange", _xdmf_order(path, mesh)) if suffix == ".xdmf" else _common_family(fields.values())
        for name, f in fields.items():
            shape = tuple(f.function_space.value_shape)
            self._held[name] = fem.Function(fem.functionspace(mesh, (family, k, shape)), name=name)
        logger.info("%s: %s as %s, %s of degree %d", path, ", ".join(fields), SUFFIXES[suffix], family, k)
        V = next(iter(self._held.values())).function_space
        if suffix == ".npz":
            index = V.dofmap.index_map
            cells = V.dofmap.list[own_cells(mesh)]
            numbers = index.local_to_global(cells.ravel()).reshape(cells.shape)
            points = V.tabulate_dof_coordinates()[: index.size_local, : mesh.geometry.dim]
            self._table = {"points": _stacked(comm, points), "cells": _stacked(comm, numbers), "times": []}
            self._table |= {name: [] for name in fields}
            return
        self._staged = Staged(comm, path)
        nodes = mesh.geometry.x.nbytes + 3 * V.tabulate_dof_coordinates().nbytes
        with self._writing(nodes + 8 * (V.dofmap.list.size + _compat.geometry_dofmap(mesh).size)):
            if suffix == ".bp":
                policy = dio.VTXMeshPolicy.reuse
                self._file = dio.VTXWriter(comm, str(self._staged.path), list(self._held.values()), mesh_policy=policy)
            else:
                self._file = dio.XDMFFile(comm, str(self._staged.path), "w")
                self._file.write_mesh(mesh)

    @contextmanager
    def _writing(self, size: int) -> Iterator[None]:
        """Where a library writes so many bytes from this rank; a file that it has failed on is given up."""
        assert self._staged is not None
        try:
            self._staged.claim(size)
            with self._staged.unfinished(), together(self._staged.comm):
                yield
        except BaseException as e:
            if self._file is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._file))  # its destructor would end the process
            self._file = self._staged = None
            if isinstance(e, RuntimeError):
                raise OSError(f"{self.path} cannot be written: {e}") from e
            raise

    def close(self) -> None:
        """Finish the file, and give it its name."""
        if self._staged is not None and self._file is not None:
            staged = self._staged
            with self._writing(0):
                self._file.close()
            staged.publish()
        if self._table:
            comm = next(iter(self._held.values())).function_space.mesh.comm
            table, self._table = self._table, {}
            arrays: dict[str, Any] = {k: np.asarray(v) for k, v in table.items()}
            on_root(comm, lambda: store(self.path, lambda file: np.savez_compressed(file, **arrays)))
        self._file = self._staged = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_domain(path: str | Path, domain: Domain) -> None:
    """Write a mesh and the names of its boundary parts to an .xdmf file (and the .h5 file that belongs to it).

    :meth:`fpsolver.Domain.read` reads it on any number of ranks, and refuses files that have changed since.  ParaView
    shows the parts as the field "parts" on the boundary: part i of ``domain.parts`` adds 2^i.

    Raises:
        OSError: the files cannot be written, with their name and the reason.
    """
    path = Path(path)
    if path.suffix != ".xdmf":
        raise ValueError(f"{path}: domains are written as .xdmf, not {path.suffix!r}")
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
    staged = Staged(domain.comm, path)
    staged.claim(mesh.geometry.x.nbytes + 8 * (_compat.geometry_dofmap(mesh).size + (dim + 1) * len(facets)))
    before, mesh.name = mesh.name, "mesh"
    try:
        with staged.unfinished(), dio.XDMFFile(domain.comm, str(staged.path), "w") as file:
            file.write_mesh(mesh)
            file.write_meshtags(tags, mesh.geometry)
            file.write_information(XDMF_KEY, json.dumps({"parts": domain.parts, "sha256": UNSIGNED}))
    except RuntimeError as e:
        raise OSError(f"{path} cannot be written: {e}") from e
    finally:
        mesh.name = before
    on_root(domain.comm, lambda: sign(staged.path))
    staged.publish()


def _xdmf_order(path: Path, mesh: dmesh.Mesh) -> int:
    if (order := _compat.coordinate_map(mesh).degree) > 2:
        raise ValueError(f"{path}: XDMF has no cells of degree {order}; write .bp, or make the mesh with order=2")
    return order


# -- Fields


def _named(functions: Fields, path: Path) -> dict[str, fem.Function]:
    """The functions to write, by name."""
    many = functions if isinstance(functions, Mapping | list | tuple) else [functions]
    found = [getattr(f, "function", f) for f in (many.values() if isinstance(many, Mapping) else many)]
    names = list(many) if isinstance(many, Mapping) else [getattr(f, "name", "") for f in found]
    for name, f in zip(names, found, strict=True):
        if not isinstance(f, fem.Function):
            raise ValueError(
                f"{path}: expected DOLFINx functions or solutions, but {name or 'an entry'!r} is {type(f).__name__}"
            )
    if len(set(names)) < len(names):
        raise ValueError(
            f"{path}: several functions have the same name ({', '.join(names)}); give a dict {{name: function}}"
        )
    if not names:
        raise ValueError(f"{path}: there is nothing to write")
    return dict(zip(names, found, strict=True))


def _common_family(functions: Any) -> tuple[str, int]:
    """A Lagrange family that holds all of the functions."""
    kinds = [lagrange(f.function_space) or ("DG", degree(f.function_space)) for f in functions]
    return "DG" if any(family == "DG" for family, _ in kinds) else "Lagrange", max(k for _, k in kinds)


def _transfer(f: fem.Function, held: fem.Function) -> None:
    """Give ``held`` the values of ``f``."""
    family, target = lagrange(f.function_space), lagrange(held.function_space)
    if family == target and f.function_space.element.basix_element == held.function_space.element.basix_element:
        held.x.array[:] = f.x.array
    elif target is not None and target[0] == "Lagrange" and (family is None or family[0] == "DG"):
        _average(f, held)
    else:
        held.interpolate(f)
    held.x.scatter_forward()


def _average(f: fem.Function, held: fem.Function) -> None:
    """Average the values of a discontinuous function at each node of a continuous space.

    Plain interpolation would keep the value of whichever cell comes last, which depends on the number of ranks.
    """
    P = held.function_space
    mesh, bs = P.mesh, P.dofmap.index_map_bs
    cellwise = fem.Function(fem.functionspace(mesh, ("DG", lagrange(P)[1], tuple(P.value_shape))))  # type: ignore[index]
    cellwise.interpolate(f)
    cells = own_cells(mesh)
    nodes, mine = P.dofmap.list[cells], cellwise.function_space.dofmap.list[cells]
    held.x.array[:] = 0.0
    count = fem.Function(P)
    np.add.at(held.x.array.reshape(-1, bs), nodes, cellwise.x.array.reshape(-1, bs)[mine])
    np.add.at(count.x.array.reshape(-1, bs), nodes, 1.0)
    for g in (held, count):
        g.x.scatter_reverse(dolfinx.la.InsertMode.add)
        g.x.scatter_forward()
    held.x.array[:] /= count.x.array


def _stacked(comm: MPI.Comm, mine: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """The rows of all ranks, on rank 0."""
    pieces = comm.gather(mine, root=0)
    return None if pieces is None else np.concatenate(pieces)
