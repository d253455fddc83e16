"""The default data sets, one a file."""
