"""Methods that search times and coefficients without training a network."""
