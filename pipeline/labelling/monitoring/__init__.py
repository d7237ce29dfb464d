"""Monitor a run: progress display, logs, Prometheus metrics and status file."""
