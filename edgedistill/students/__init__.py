"""Student folders, groups of students, and the routing of conditions to students."""
