"""From what the user names to records: sources, units, readers. Whatever is malformed becomes a value."""
