"""What runs or proves bundles with more than the runtime brings, found by entry point."""
