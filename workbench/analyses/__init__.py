"""Analyses: what tuning did, measured on a policy, on rows or on runs. Each returns its numbers
and draws its picture."""
