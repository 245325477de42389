"""One reader for each published layout of raw files."""
