"""The commands of `segmv3`, a module each: its flags as dataclasses, and `run`, which parses, calls and prints."""
