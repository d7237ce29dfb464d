"""One module a command: options in, report out; the work is done elsewhere in training."""
