"""What answers tell: bounds, asymptotics and conditions of theorems, evaluated on the mesh."""
