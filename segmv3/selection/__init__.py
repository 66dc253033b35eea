"""Which frames of a pool to label next: those that a net is unsure of and that differ from each other."""
