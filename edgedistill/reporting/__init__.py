"""Picture grids, charts and the one-file report for people."""
