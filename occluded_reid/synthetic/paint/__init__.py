"""Layers, shapes, colors and textures."""
