"""The scheduler's backend on Ray: actors as workers, and a local Ray or a cluster to run them."""
