"""The shipped model: `text.py` makes its text, `train.py` its tokenizer and weights, README.md is its card."""
