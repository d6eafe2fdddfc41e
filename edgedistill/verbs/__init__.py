"""Functions of `import edgedistill`, which the command line calls too: one for each command."""
