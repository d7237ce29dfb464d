"""The plain way to compute each score, with public libraries only: every fast path must agree with it.

Nothing here imports phf, so that no bug of ours can be on both sides of a comparison.
"""
