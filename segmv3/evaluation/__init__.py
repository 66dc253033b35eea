"""Scoring a net over a split of a data set, on one process or several."""
