"""Side by side with the peers from the package index: `python -m benchmarks`."""
