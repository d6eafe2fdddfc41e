"""Figures of samples: against the truth in the plane, against data and captions for pictures."""
