"""Weightings of the diffusion loss by noise level."""
