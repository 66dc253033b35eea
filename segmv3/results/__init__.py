"""What an evaluation found: the result file, how far it can be trusted, and what it says of each image."""
