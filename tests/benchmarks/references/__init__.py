"""The plain way to compute each score, with the public libraries only: what every fast path must agree with.

Nothing here imports phf, so that no mistake of ours can be on both sides of a comparison.
"""
