"""Import and export of models and schedulers of diffusers, and of checkpoints of improved- and guided-diffusion."""
