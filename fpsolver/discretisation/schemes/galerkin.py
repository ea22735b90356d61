"""Continuous elements: best value for smooth, non-degenerate, well resolved problems."""

from .scheme import Scheme


class Galerkin(Scheme):
    """The forms as they are."""

    name = "galerkin"
    multigrid = True
