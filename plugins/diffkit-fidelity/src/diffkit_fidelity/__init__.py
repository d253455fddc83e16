"""Metrics on features of image networks: FID, KID, precision and recall, Inception score."""
