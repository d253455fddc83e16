"""diffkit: an extensible plugin framework for diffusion variants."""
