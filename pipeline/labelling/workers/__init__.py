"""What a worker does with a unit: read, split, score, stage; and records that it does not survive."""
