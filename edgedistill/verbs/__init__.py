"""What `import edgedistill` gives, and what the command line calls: one function a verb."""
