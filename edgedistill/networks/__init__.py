"""Our own networks: the planar student, feature taps and discriminator heads."""
