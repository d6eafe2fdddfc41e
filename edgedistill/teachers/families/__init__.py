"""Families of teachers, one file each."""
