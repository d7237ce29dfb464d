"""One module per command: parse the options, call the pipeline, print the result."""
