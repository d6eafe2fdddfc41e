"""What people look at: picture grids, charts and the one-file report."""
