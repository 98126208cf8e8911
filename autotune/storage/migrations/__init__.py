"""Migration scripts of the study database, run by `autotune.storage.migrate`."""
