"""Score-based generative modeling through stochastic differential equations (Song et al. 2021, arXiv:2011.13456)."""
