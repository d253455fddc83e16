"""The default data sets: generated (digits, gaussian, mixture), your own (arrays, images) and published ones."""
