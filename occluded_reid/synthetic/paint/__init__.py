"""A canvas, colors and textures."""
