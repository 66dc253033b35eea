"""Adapting a net to new streets without labels: it learns from what it is sure of there."""
