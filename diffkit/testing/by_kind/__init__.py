"""The laws, one module for each kind."""
