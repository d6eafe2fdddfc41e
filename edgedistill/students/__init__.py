"""Student folders, groups of students, and which student learns what."""
