"""Memory without paying for it: rehearse a trial, simulate its allocator, learn what both miss."""
