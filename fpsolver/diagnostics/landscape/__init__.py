"""Minima, saddles, exponents and star-convexity of a loss."""
