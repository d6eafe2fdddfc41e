"""Remove blocks or channels of a network; the result is a real, smaller diffusers network."""
