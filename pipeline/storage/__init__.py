"""Reach file systems and object stores: open, read, write whole, list."""
