"""Methods that learn a consistency function."""
