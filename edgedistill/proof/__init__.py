"""Comparison of a teacher with its own diffusers pipeline, before anything trains."""
