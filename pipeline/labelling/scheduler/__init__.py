"""Decide which worker labels which unit and when. Uses neither Ray nor storage, so tests can simulate it."""
