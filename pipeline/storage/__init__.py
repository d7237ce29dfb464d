"""Durable storage on disks and object stores behind one interface, and JSON files that detect damage."""
