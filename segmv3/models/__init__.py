"""Nets: backbone, heads, the whole segmenter, and the named ones."""
