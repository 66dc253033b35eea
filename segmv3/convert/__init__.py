"""A net as a file for another runtime."""
