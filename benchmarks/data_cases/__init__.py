"""What `benchmarks.data` measures, one part of the data road a file."""
