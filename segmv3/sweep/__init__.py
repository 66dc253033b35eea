"""Searching settings: the space of a sweep, and the trials it is made of."""
