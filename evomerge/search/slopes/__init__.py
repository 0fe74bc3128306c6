"""Drivers that climb along the slopes of the scores."""
