"""Files, settings, progress and pictures: the helpers that every other folder uses."""
