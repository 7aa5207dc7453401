"""Drawn pedestrians: body, pose, clothes, belongings."""
