"""Sharing: what goes out with a trained policy: a model card, an upload to the Hub, a script that makes it again."""
