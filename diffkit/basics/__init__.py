"""What every recipe may use and no paper claims: data sets, metrics, grids, guidance, times, codecs, trackers."""
