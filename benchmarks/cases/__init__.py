"""What is measured: models, batches and steps at the sizes of the papers."""
