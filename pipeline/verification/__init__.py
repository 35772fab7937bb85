"""Count a run again, without the code that wrote it."""
