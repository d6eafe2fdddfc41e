"""Drawing with teachers, students and bundles."""
