"""What runs or proves bundles and needs more than the runtime brings; the runtime finds it by entry point."""
