"""Losses that can be added to any method."""
