"""One file for each family of teachers."""
