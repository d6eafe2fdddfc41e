"""Methods that match the distribution of samples."""
