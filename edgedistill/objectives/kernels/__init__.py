"""Methods that compare samples with data by a kernel, without a second network."""
