"""Verify a labelled dataset from its files alone, describe its contents, and report the status of a job."""
