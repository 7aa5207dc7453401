"""What stands in front of a drawn pedestrian."""
