"""The default metrics, one per file."""
