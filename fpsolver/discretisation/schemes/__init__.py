"""How the equation is discretised: the weak forms, and one object for each scheme that answers what differs."""

from .dg import DG
from .galerkin import Galerkin
from .scheme import Scheme
from .weighted import Weighted

SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (Galerkin(), DG(), Weighted())}


def named(name: str) -> Scheme:
    """The scheme of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in SCHEMES:
        raise ValueError(f"scheme is {name!r}; 'auto', {', '.join(map(repr, SCHEMES))} were expected.")
    return SCHEMES[name]
