"""What a user would run instead, in our own plain words."""
