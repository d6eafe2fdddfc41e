"""Methods that learn where the teacher's path leads."""
