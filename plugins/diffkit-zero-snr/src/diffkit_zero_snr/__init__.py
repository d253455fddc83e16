"""Zero terminal SNR and rescaled guidance (Lin et al. 2024, arXiv:2305.08891)."""
