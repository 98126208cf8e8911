"""One training: its stages, its loop, its measurement, its process."""
