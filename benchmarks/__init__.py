"""Measure what the documentation claims, one script a claim; figures stand beside each script as CSV."""
