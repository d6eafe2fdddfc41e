"""Bytes that are alive in a step, counted on the meta device."""
