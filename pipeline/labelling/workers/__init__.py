"""Label a unit in a worker: read, split, score and stage it, and isolate records that kill the process."""
