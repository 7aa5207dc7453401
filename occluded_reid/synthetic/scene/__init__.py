"""Background, cameras, and the composition of an image."""
