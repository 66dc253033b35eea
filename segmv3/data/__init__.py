"""Data sets, transforms, loader, and the check before a run."""
