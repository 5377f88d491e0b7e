"""Variants of supervised fine-tuning: see `workbench.methods.sft.Variant`.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {}
