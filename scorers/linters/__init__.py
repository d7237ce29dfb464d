"""Linters of Python: a document is a file, and what they find counts on its physical line."""
