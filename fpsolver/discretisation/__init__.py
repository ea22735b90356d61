"""A process on a domain: weak forms, boundary classes, matrices, answers."""
