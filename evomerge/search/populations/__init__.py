"""Drivers whose candidates are made of the weights of earlier candidates."""
