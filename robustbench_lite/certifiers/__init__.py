"""Methods of certification, one a file, found by their names."""
