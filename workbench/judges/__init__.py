"""Judges: what says whether an answer is right, or which of two is better: a rule, the policy itself, another model, an
endpoint."""
