"""Whole runs, from names and options to a folder of results."""
