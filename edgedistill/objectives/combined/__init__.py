"""Methods that join two families, each of which makes up for what the other lacks."""
