"""Networks of our own: the planar student, feature taps and discriminator heads."""
