"""Which blocks of a network stay, made into a real, smaller diffusers network."""
