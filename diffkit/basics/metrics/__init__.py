"""The default metrics, one a file."""
