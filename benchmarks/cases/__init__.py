"""Models, batches and steps at the papers' sizes."""
