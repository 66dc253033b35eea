"""One module for each command of `segmv3` that has commands of its own."""
