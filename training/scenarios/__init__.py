"""Scenarios: what a trained model writes after prompts."""
