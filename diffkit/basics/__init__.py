"""Default components that belong to no single paper: data sets, metrics, grids, guidance, times, codecs, trackers."""
