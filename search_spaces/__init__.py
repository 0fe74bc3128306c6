"""Recipes with holes, ready to run (data only)."""
