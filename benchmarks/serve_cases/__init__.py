"""The cases of `benchmarks.serve`: servers, a client, and what is measured with them."""
