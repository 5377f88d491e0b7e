"""Variants of preference optimisation: see `workbench.methods.dpo.Variant`.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {
    "thinkpo": "thinkpo",
    "chain_of_preference": "chain_of_preference",
    "aft": "aft",
    "self_judgment": "self_judgment",
}
