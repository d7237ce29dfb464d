"""Every architecture of transformers' `AutoModelForCausalLM` in a tiny config, on the whole road of a run."""
