"""What a run leaves on disk: folder and facts, checkpoints, the lock, evaluation reports."""
