"""Jobs that run on this machine, detached from the terminal."""
