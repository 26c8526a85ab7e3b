"""Trains the presets on the task generators, every design on the same tokens in the same order."""
