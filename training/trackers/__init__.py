"""Trackers that mirror `metrics.jsonl`: TensorBoard, and W&B, MLflow and trackio as extras, each behind `Sink`."""
