"""Variants of policy gradients: see `workbench.methods.grpo.Variant`.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {}
