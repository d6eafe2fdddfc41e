"""Methods that train a student by preferences."""
