"""Improved denoising diffusion probabilistic models (Nichol & Dhariwal 2021, arXiv:2102.09672)."""
