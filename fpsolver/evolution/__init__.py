"""Laws and expectations in time."""
