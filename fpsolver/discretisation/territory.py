"""Where a process lives: in which cells, and at which facets it is killed."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from dolfinx import fem
from dolfinx import mesh as dmesh

from ..domains.domain import Domain


class Territory:
    """The whole domain, with absorbing parts; ``declared`` are those that were declared with the generator."""

    cells: Any = None  #: tags of the cells in which the process lives, with value 1; None: all
    interior: Any = None  #: [(1, interior facets as pairs of cell and local facet)]; None: all

    def __init__(self, domain: Domain, absorbing: tuple[str, ...]):
        self.domain, self.absorbing, self.declared = domain, absorbing, absorbing

    def facets(self, parts: Sequence[str]) -> Any:
        """The facets of some absorbing parts, in the form that a measure takes (see ``WeakForm.ds``)."""
        return union_tags(self.domain, parts)

    @cached_property
    def exits(self) -> Any:
        """All absorbing facets, in that form."""
        return self.facets(self.absorbing)

    @cached_property
    def stops(self) -> npt.NDArray[np.int32]:
        """Local indices of the facets at which the process is killed."""
        return np.asarray(union_tags(self.domain, self.absorbing).indices)

    def idle(self, V: fem.FunctionSpace) -> npt.NDArray[np.bool_] | None:
        """Which local unknowns belong to no cell in which the process lives; None: none of them (collective)."""
        return None

    def complete(self, u: fem.Function, data: Mapping[str, Any]) -> None:
        """Give what is idle its value, the data of where the process stops there (collective)."""

    def on(self, domain: Domain) -> "Territory":
        """The same on another mesh (collective)."""
        return Territory(domain, self.absorbing)


def union_tags(domain: Domain, names: Sequence[str]) -> dmesh.MeshTags:
    """The facets of all these parts, with value 1."""
    parts = [domain.facets(name) for name in names]
    facets = np.unique(np.concatenate([np.zeros(0, np.int32), *parts])).astype(np.int32)
    return dmesh.meshtags(domain.mesh, domain.dim - 1, facets, np.ones_like(facets))
