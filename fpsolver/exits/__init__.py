"""Leaving: exit times and probabilities, their error bars, and what may be asked."""
