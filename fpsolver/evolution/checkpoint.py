"""Evolutions that survive: every output is a file, complete at any moment, that any number of ranks can read.

A checkpoint is a folder.  ``points.npz`` has, for every cell and every node in it, a place inside the cell; it tells
the meaning of the values in ``start.npz`` (time 0) and in ``00000.npz``, ``00001.npz``, ... (the outputs), whatever
the partition, the numbering or the continuity of the elements.  ``operator.npz`` and ``evolution.json`` say of what.
Files are written under another name, forced to the disk and then renamed, so that a process that is killed loses no
more than the output it was working on.  (Not by adios4dolfinx, which reads on other ranks only with the mesh in the
same file, ends the process where the disk is full, and has no version for DOLFINx 0.11 in Debian.)
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
from dolfinx import fem
from scipy.spatial import cKDTree

from .. import _compat
from .._errors import agree, on_root
from .._files import store
from .._log import logger
from .._sample import own_cells, push_forward
from ..discretisation.assembly import to_function, to_vector
from ..discretisation.generator import Generator
from ..discretisation.points import bounds
from ._expm import Snapshot
from ._moments import functionals

VERSION = 1
INSIDE = 0.9  # nodes are told apart by their images under this contraction of the cell: those of neighbours coincide
CLOSE = 1e-10  # times the domain's extent: places that are the same
SAME = 1e-9  # relative difference of numbers that are the same but for the order of summation
ABOUT = "evolution.json"


def describe(path: str | Path, comm: MPI.Comm) -> dict[str, Any]:
    """What a checkpoint is about: evolution, times, tol and the signature (collective).

    Raises:
        FileNotFoundError: there is none.
    """
    about = comm.bcast(on_root(comm, lambda: _about(Path(path))), root=0)
    if about is None:
        raise FileNotFoundError(f"{path} is not the folder of a checkpoint: there is no {ABOUT} in it.")
    return about


class Checkpoint:
    """The checkpoint of a ``"density"``, maybe a signed one, or of an ``"expectation"`` (collective, as all here)."""

    def __init__(self, path: str | Path, gen: Generator, evolution: str, signed: bool = False):
        self.path, self.gen, self.comm = Path(path), gen, gen.domain.comm
        self._evolution, self._signed = evolution, signed
        self._order = np.zeros(0, int)  # on rank 0: places in the files of all nodes, rank after rank

    def open(
        self, v0: PETSc.Vec | None, times: np.ndarray, tol: float, more: Callable[[float], dict[str, Any]]
    ) -> PETSc.Vec:
        """Begin a checkpoint with ``v0``, or take up one that exists, and return what it began with.

        ``more`` tells what else the evolution depends on, for given last time.

        Raises:
            ValueError: the folder has other contents, or the checkpoint of another evolution.
        """
        kept = self._on_root(lambda: _about(self.path))
        asked = [float(t) for t in times]
        about: dict[str, Any] = {
            "version": VERSION, "evolution": self._evolution, "times": asked, "time_rtol": tol, "signed": self._signed,
            "horizon": kept["horizon"] if kept else asked[-1],
        }  # fmt: skip
        about["signature"] = {**_signature(self.gen), **more(about["horizon"])}
        places = self.comm.gather(_places(self.gen), root=0)
        if kept is None:
            assert v0 is not None
            on_root(self.comm, lambda: self._begin(np.concatenate(places)))
            self._write("start", self._values(v0), time=0.0)
            self._write("operator", *self._action())
            self._describe(about)
            return v0
        self._compare(kept, about)
        on_root(self.comm, lambda: self._find(np.concatenate(places)))
        self._compare_action()
        start = self._vector(self._load("start"))
        if v0 is not None and self.comm.bcast(bool((change := (v0 - start).norm() / start.norm()) > 1e-8), root=0):
            raise ValueError(f"{self.path} began with another function at t = 0: they differ by {change:.2g}.")
        if asked != kept["times"]:
            signature = {**_signature(self.gen), **more(asked[-1])}
            self._describe({**about, "horizon": asked[-1], "signature": signature})
        return start

    def read(self, times: np.ndarray) -> Iterator[tuple[Snapshot, float]]:
        """The outputs that are there, each with the estimated error spent until then."""
        files = [self._file(f"{i:05d}") for i in range(len(times))]
        there = self._on_root(lambda: [file.is_file() for file in files])
        count = [*there, False].index(False)
        if count:
            last = times[count - 1]
            logger.info("%s: %d of %d outputs are there, the last at t = %g", self.path, count, len(times), last)
        for i in range(count):
            record = self._load(f"{i:05d}")
            numbers = self.comm.bcast({k: v for k, v in record.items() if k != "values"} if record else None, root=0)
            vector = self._vector(record)
            yield Snapshot(float(times[i]), vector, numbers["integrals"], numbers["flow"]), float(numbers["spent"])

    def save(self, index: int, snapshot: Snapshot, spent: float) -> None:
        """Keep an output."""
        numbers = {"time": snapshot.time, "integrals": snapshot.integrals, "flow": snapshot.values, "spent": spent}
        self._write(f"{index:05d}", self._values(snapshot.vector), **numbers)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.npz"

    def _on_root(self, work: Callable[[], Any]) -> Any:
        """What rank 0 finds out, on every rank."""
        return self.comm.bcast(on_root(self.comm, work), root=0)

    def _describe(self, about: dict[str, Any]) -> None:
        content = json.dumps(about, indent=1).encode()
        on_root(self.comm, lambda: store(self.path / ABOUT, lambda file: file.write(content)))

    def _begin(self, places: np.ndarray) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        known = {"points.npz", "start.npz", "operator.npz"}
        other = [p.name for p in self.path.iterdir() if p.name not in known and not p.name.endswith(".part")]
        if other:
            raise ValueError(
                f"{self.path} is not a checkpoint and not empty: there is {sorted(other)[0]!r}. Name a new folder."
            )
        store(self._file("points"), lambda file: np.savez(file, points=places))
        self._order = np.arange(len(places))

    def _find(self, places: np.ndarray) -> None:
        """Where the files have this partition's nodes; refuse another mesh."""
        with np.load(self._file("points")) as file:
            points = file["points"]
        extent = np.ptp(points, axis=0).max()
        if points.shape == places.shape:
            distance, self._order = cKDTree(points).query(places)
            if distance.max() <= CLOSE * extent and len(np.unique(self._order)) == len(points):
                return
        raise ValueError(f"{self.path} was written on another mesh: its nodes are elsewhere.")

    def _compare(self, kept: dict[str, Any], about: dict[str, Any]) -> None:
        """Refuse to go on with another evolution; everything that is compared is the same on all ranks."""
        for name in ("version", "evolution", "time_rtol"):
            if kept[name] != about[name]:
                raise ValueError(f"{self.path} has {name} {kept[name]!r}, this is {name} {about[name]!r}.")
        old, new = kept["signature"], about["signature"]
        for name in sorted({*old, *new}):
            if not _same(old.get(name), new.get(name)):
                raise ValueError(
                    f"{self.path} was written with {name} {old.get(name)}, this evolution has {new.get(name)}."
                )
        done = self._on_root(lambda: len(list(self.path.glob("[0-9]*.npz"))))
        if kept["times"][:done] != about["times"][:done]:
            raise ValueError(
                f"{self.path} has outputs at {kept['times'][:done]}; the times must begin with these, not with "
                f"{about['times'][:done]}."
            )

    def _action(self) -> tuple[np.ndarray | None, ...]:
        """What G does to a function that has no symmetry: its symmetric part, its skew part, flux through each part."""
        gen, dual = self.gen, self.gen.G.createVecLeft()
        w = to_vector(gen, _probe(gen))
        gen.G.multTranspose(w, dual)
        forward = gen.G * w
        rows = [self._values(v) for v in (forward + dual, forward - dual, *functionals(gen, gen.absorbing)[1:])]
        return tuple(rows) if rows[0] is not None else (None,)

    def _compare_action(self) -> None:
        """Refuse another operator, and say what of it differs."""
        rows, kept = self._action(), self._load("operator")

        def compare() -> None:
            assert kept is not None
            names = ["the diffusion", "the drift", *(f"the place of part {part!r}" for part in self.gen.absorbing)]
            now, then = np.stack([r for r in rows if r is not None]), kept["values"]
            changes = np.abs(now - then).max(axis=1)
            scales = np.abs(then).max(axis=1)
            scales[:2] = scales[:2].max()  # a process without drift has rounding in its skew part
            if (differs := changes > 1e-8 * scales).any():
                found = " and ".join(n for n, d in zip(names, differs, strict=True) if d)
                raise ValueError(
                    f"{self.path} was written for another process: {found} differ from then, by up to "
                    f"{(changes / np.maximum(scales, 1e-300)).max():.2g} of its size. Name a new folder."
                )

        on_root(self.comm, compare)

    def _values(self, vector: PETSc.Vec) -> np.ndarray | None:
        """Values at all nodes of all cells in the order of the files, on rank 0."""
        function = to_function(self.gen, vector)
        mine = function.x.array[self.gen.V.dofmap.list[own_cells(self.gen.domain.mesh)]].ravel()
        pieces = self.comm.gather(mine, root=0)
        if pieces is None:
            return None
        values = np.empty(len(self._order))
        values[self._order] = np.concatenate(pieces)
        return values

    def _vector(self, record: dict[str, np.ndarray] | None) -> PETSc.Vec:
        """The vector with these values."""
        dofs = self.gen.V.dofmap.list[own_cells(self.gen.domain.mesh)].ravel()
        sizes = self.comm.gather(len(dofs), root=0)
        pieces = None
        if record is not None and sizes is not None:
            pieces = np.split(record["values"][self._order], np.cumsum(sizes)[:-1])
        function = fem.Function(self.gen.V)
        function.x.array[:] = np.nan
        function.x.array[dofs] = self.comm.scatter(pieces, root=0)
        vector = to_vector(self.gen, function)
        complete = np.isfinite(vector.array_r).all()
        agree(self.comm, None if complete else f"{self.path}: values are missing or not finite.")
        return vector

    def _load(self, name: str) -> dict[str, np.ndarray] | None:
        def load() -> dict[str, np.ndarray]:
            try:
                with np.load(self._file(name)) as data:
                    return dict(data)
            except Exception as error:
                raise ValueError(f"{self._file(name)} is damaged: {error}") from error

        return on_root(self.comm, load)

    def _write(self, name: str, *rows: np.ndarray | None, **numbers: Any) -> None:
        def write(file: Any) -> None:
            values: Any = rows[0] if len(rows) == 1 else np.stack([r for r in rows if r is not None])
            np.savez(file, **{"values": values, **numbers})

        on_root(self.comm, lambda: store(self._file(name), write))


def _about(path: Path) -> dict[str, Any] | None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; a checkpoint is a folder.")
    file = path / ABOUT
    return json.loads(file.read_text()) if file.is_file() else None


def _places(gen: Generator) -> np.ndarray:
    """For each node of each owned cell, in the order of the dofmap, a place in the cell, shape (nodes, dim)."""
    X = _compat.interpolation_points(gen.V.element)
    x = push_forward(gen.domain.mesh, X, own_cells(gen.domain.mesh))
    centre = x.mean(axis=1, keepdims=True)
    return (centre + INSIDE * (x - centre)).reshape(-1, gen.domain.dim)


def _probe(gen: Generator) -> fem.Function:
    """A function that tells generators apart: no symmetry of theirs is one of it."""
    low, high = bounds(gen.domain.mesh)
    waves = 3.1 * (1.0 + 0.37 * np.arange(len(low)) ** 2)
    probe = fem.Function(gen.V)

    def values(x: np.ndarray) -> np.ndarray:
        s = (x[: len(low)] - low[:, None]) / (high - low)[:, None]
        return np.cos(waves @ s + 0.4) + 0.5 * (s**2).sum(axis=0)

    probe.interpolate(values)
    return probe


def _signature(gen: Generator) -> dict[str, Any]:
    """What an evolution depends on; drift and noise, which may be functions, through the matrix they give."""
    return {
        "process": type(gen.process).__name__,
        "parameters": gen.process.numbers(),
        "absorbing parts": list(gen.absorbing),
        "scheme": gen.scheme,
        "degree": gen.degree,
        "number of unknowns": gen.G.getSize()[0],
        "operator norm": gen.G.norm(PETSc.NormType.FROBENIUS),
    }


def _same(a: Any, b: Any) -> bool:
    """Equality, of numbers up to the order of summation."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= SAME * max(abs(a), abs(b))
    return bool(a == b)
