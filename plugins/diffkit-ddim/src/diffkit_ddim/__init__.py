"""Denoising diffusion implicit models (Song et al. 2021, arXiv:2010.02502)."""
