"""Training on a Ray cluster: Ray Train places and restarts the ranks, each of which is an ordinary process."""
