"""The models and contestants of `benchmarks.compress`."""
