"""Merge the small files of a finished run into large ones."""
