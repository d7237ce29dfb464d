"""Python linters: a document is a file, and each violation counts on its physical line."""
