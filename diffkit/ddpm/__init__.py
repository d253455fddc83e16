"""Denoising diffusion probabilistic models (Ho et al. 2020, arXiv:2006.11239): the default plugin.

It is written against public names only, as any plugin is: read it as the reference of how to write one.
"""
