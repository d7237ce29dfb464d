"""Neural sentence classifiers."""
