"""Compression of images and arrays with a trained model."""
