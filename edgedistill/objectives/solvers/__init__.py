"""Methods that search times and coefficients and train no network."""
