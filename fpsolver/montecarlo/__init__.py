"""Paths of the diffusion and of the algorithm itself, and both beside the equation."""
