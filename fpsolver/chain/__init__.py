"""The algorithm itself as a Markov chain on the mesh: its transition operator, which every verb takes."""

from .chain import Chain as Chain
