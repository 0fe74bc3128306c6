"""Drivers whose candidates are merges of earlier candidates."""
