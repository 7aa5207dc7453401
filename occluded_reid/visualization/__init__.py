"""Figures of ranked lists, visibility, landmarks, batches and curves."""
