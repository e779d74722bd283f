"""Side-by-side benchmarks: ours and its peers in turn on one machine, outputs compared, ratios printed."""
