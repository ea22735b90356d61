"""Invariant laws, slow modes, and the limit of vanishing added noise."""
