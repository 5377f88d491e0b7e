"""Scores and selectors: which rows to train on."""
