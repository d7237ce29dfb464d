"""Compare runs with a reference: how far a run moved from it, and how likely the run's samples are under it."""
