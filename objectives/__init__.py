"""Objectives that ship with autotune: loaded by name, never imported by it."""
