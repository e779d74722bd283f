"""The parts of `gpu_train`: what a step costs in arithmetic, what the GPU did meanwhile, ours and peers."""
