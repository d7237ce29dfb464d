"""Where logged numbers go besides `metrics.jsonl`: TensorBoard, and others by extra, each behind `Sink`."""
