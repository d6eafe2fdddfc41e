"""The mathematics: schedules, predictions, solvers, step tables, losses."""
