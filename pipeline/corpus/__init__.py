"""Turn the inputs that the user names into sources, units and records; malformed records become values."""
