"""`phf doctor`: which scorers run on this machine, with which weights, how fast, and what is missing."""
