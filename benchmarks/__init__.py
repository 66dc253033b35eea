"""Races against other projects: `segmv3 benchmark peers` and others. They need a clone; the wheel has none of them."""
