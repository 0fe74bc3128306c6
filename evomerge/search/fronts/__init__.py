"""Drivers that approximate a front from few evaluations, by surrogates of the objectives."""
