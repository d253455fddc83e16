"""Files of a run that survive a crash: atomic writes, checkpoints, logs, locks and the layout of a run directory."""
