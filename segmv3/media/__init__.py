"""Pictures: drawing labels, errors and legends."""
