"""What `phf doctor` tells: which scorers can run on this machine, from which weights, how fast, and what is missing."""
