"""What a run shows while it goes: progress, logs, metrics for Prometheus, the status file."""
