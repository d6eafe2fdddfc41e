"""Choose the bundle that suits a device best, and remember the choice."""
