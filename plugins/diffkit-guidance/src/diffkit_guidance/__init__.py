"""Guidance beyond classifier-free guidance."""
