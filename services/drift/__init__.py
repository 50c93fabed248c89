"""Drift: how good the model is now, and whether the world has changed."""
