"""What a run keeps on disk: folder and facts, checkpoints, the lock, evaluation reports."""
