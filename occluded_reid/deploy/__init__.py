"""Trained models at work: embedding, extraction in bulk, export."""
