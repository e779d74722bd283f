"""The parts of `benchmarks.serve_llm`, one question a file."""
