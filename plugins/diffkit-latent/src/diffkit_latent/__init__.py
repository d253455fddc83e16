"""Autoencoders for latent diffusion: codecs, the losses that train them, and metrics of reconstructions."""
