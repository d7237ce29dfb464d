"""Distribution matching: move a finished model to targets on its own samples, at the least KL from what it was."""
