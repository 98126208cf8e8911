"""Experiment trackers as observers of a run; each through its own, optional library."""
