"""Drawn pedestrians: body, pose, clothes, bags."""
