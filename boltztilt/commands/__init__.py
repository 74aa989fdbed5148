"""The verbs of the command line that do long work."""
