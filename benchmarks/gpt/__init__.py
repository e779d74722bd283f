"""The GPT that `train_gpt` trains: workload, peers and ours, each importable alone."""
