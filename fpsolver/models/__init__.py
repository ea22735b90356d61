"""What the user brings: losses, gradient noise, networks and slices through them, and the processes these make."""
