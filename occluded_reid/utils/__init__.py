"""Errors, files, progress, randomness: what every room uses and what knows of none."""
