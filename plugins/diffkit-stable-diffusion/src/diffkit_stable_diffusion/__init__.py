"""Stable Diffusion: import of folders and files, conditioners of texts, and the network with cross-attention."""
