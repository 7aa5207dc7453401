"""Plain implementations of what a user would run instead."""
