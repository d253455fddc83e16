"""Common diffusion noise schedules and sample steps are flawed (Lin et al. 2024, arXiv:2305.08891): the cure."""
