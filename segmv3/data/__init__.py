"""Data sets, transforms, loader, the check before a run, and mini-city."""
