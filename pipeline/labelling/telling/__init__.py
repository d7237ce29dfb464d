"""What is told of a run: to people, to logs, to Prometheus, to `phf status`."""
