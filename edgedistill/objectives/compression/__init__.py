"""Smaller networks, other decoders, training for int8."""
