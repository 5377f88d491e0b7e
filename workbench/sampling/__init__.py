"""Sampling: what a rollout is, and the decoder that makes them."""
