"""Analyses: what tuning did, measured on a policy, on rows or on runs. Each returns its numbers
and draws its picture.

    picture.py                 the result that all of them return: `.frame`, `.tables`, `.figure`
    paired.py                  the tuned model and its base, side by side; hidden states and blocks
    probes.py, during.py       a fixed table of responses that is read again and again; the states of a run
    grid.py                    chains, cuts and answers in one array: pass@k, votes, best-of-k, tokens
    fits.py, first_order.py    lines and power laws; one small step of a softmax
"""
