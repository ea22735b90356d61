"""Exit times: bounds from both sides, and Kramers' law."""
