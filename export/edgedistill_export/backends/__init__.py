"""Backends that run or prove bundles and need more than the runtime, found by entry point."""
