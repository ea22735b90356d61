"""A landscape and its paths in one report."""
