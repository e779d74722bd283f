"""Callbacks: what can be hung onto a training run. One idea a file; the names are in `deepseek.callbacks`."""
