"""Occluders: drawings of objects that hide a pedestrian."""
