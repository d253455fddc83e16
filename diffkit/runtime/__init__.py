"""The process around a run: devices and ranks, signals, memory, progress, and a description of the environment."""
