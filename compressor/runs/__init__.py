"""Whole runs, readable from top to bottom: what each command does, without parsing and printing."""
