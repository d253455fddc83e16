"""Other people's weights: models and schedulers of diffusers, checkpoints of improved- and guided-diffusion."""
