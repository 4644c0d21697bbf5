"""Generative models whose numbers are true: build one for an event, or load a trained one from its folder."""
