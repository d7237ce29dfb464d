"""The commands of `phf`, one module each: they parse options, call the jobs and print results."""
