"""Ranks: where they meet, how they agree, who starts them, and how they end together."""
