"""Live bytes in a step, counted on the meta device."""
