"""Recipes: read YAML strictly, validate it as a whole, and build objects. Importing this package imports no torch."""
