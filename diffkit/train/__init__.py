"""Training: the loop, and everything that makes it fast and restartable."""
