"""The checks of `deepseek.train.verify`, one kind a file."""
