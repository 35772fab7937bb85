"""Judge, decode, resize and cut an image into patches."""
