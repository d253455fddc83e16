"""Training: the loop, the update, averages, precision, data loading, validation."""
