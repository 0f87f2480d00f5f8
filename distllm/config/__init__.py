"""What a user may say, and everything that follows from it."""
