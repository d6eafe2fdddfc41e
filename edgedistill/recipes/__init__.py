"""Recipes: their schema, files, checks, and the teachers that they name."""
