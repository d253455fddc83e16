"""The design choices of Karras et al. 2022 (arXiv:2206.00364) as separate components."""
