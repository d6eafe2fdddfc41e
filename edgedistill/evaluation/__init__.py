"""Evaluation of samples: points against the true mixture, pictures against data and captions."""
