"""The built-in sources of data sets, one file a family, found by name."""
