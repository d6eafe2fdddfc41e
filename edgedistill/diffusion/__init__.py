"""The mathematics of diffusion: schedules, predictions, solvers, step tables, losses."""
