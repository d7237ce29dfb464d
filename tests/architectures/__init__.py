"""Train, resume, evaluate and export every architecture of transformers' `AutoModelForCausalLM` in a tiny config."""
