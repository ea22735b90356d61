"""A process at points, wherever they are and without a mesh: formulas, drift and noise, steps of algorithms, walls."""
