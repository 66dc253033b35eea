"""segmv3."""
