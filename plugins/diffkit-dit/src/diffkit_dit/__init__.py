"""Diffusion transformers: DiT and U-ViT."""
