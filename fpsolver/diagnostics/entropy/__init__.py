"""The long run: convergence in entropy, and what walls do to the invariant law."""
