"""The network: sizes by name, heads, control-token rows, export."""
