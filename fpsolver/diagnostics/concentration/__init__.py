"""The first phase: how mass concentrates, and until when drift rules."""
