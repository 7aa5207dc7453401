"""What happens to an image: resizing, augmentation, occlusion."""
