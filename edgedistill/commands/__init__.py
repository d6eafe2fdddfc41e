"""The verbs of the command line: options in, lines out, no logic of their own."""
