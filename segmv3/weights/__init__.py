"""Foreign weights and published names."""
