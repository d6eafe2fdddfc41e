"""Losses beside any method."""
