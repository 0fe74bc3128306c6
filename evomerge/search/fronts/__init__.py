"""Drivers that approximate a whole front from few evaluations, by surrogates of the objectives."""
