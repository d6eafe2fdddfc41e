"""Methods led by a discriminator."""
