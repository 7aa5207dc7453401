"""Figures of ranked lists, visibility, landmarks, batches and training curves."""
