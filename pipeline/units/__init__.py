"""The units of a job as they lie in its output: who may commit them, their commit records, their rows."""
