"""Preparing data: the data-set doctor, derived sets, occlusion sets."""
