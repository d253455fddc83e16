"""Variational Diffusion Models: a learned noise schedule, the continuous-time bound, and Fourier features."""
