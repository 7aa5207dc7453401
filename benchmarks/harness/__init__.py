"""Timing, counting, and result files."""
