"""The BERT that `train_bert` trains: workload, peers and ours, each importable alone."""
