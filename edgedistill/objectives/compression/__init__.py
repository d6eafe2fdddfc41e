"""Methods for smaller networks, other decoders, and int8."""
