"""The commands: their arguments, options and help texts. What they do is in the modules that they import when they run."""
