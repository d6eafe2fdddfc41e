"""A teacher is compared with its own pipeline before anything trains."""
