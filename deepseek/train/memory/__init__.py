"""Memory of training: what a run will take, settings that make it fit in a budget, and what to do when it did not."""
