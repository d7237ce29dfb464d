"""Training on a Ray cluster: Ray Train places the ranks and starts them again; a rank is a process like any other."""
