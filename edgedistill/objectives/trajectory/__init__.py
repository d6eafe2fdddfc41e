"""Methods that train a map along the teacher's path."""
