"""The shipped model: `text.py` makes its text, `train.py` tokenizer and weights; README.md is its card."""
