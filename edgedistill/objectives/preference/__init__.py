"""Methods that learn from preferences."""
