"""Methods that train a consistency function."""
