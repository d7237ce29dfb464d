"""Compare evaluated runs: figures, tables and findings on one page."""
