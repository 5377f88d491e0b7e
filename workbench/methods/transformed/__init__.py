"""Supervised fine-tuning on rows that were written anew: variants whose `rows` do the work.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {}
