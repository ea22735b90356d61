"""The algorithm itself as a Markov chain on the mesh: its transition operator, and the verbs asked of it."""

from . import evolution as evolution
from . import exits as exits
from . import laws as laws
from . import regions as regions
from .chain import Chain as Chain
