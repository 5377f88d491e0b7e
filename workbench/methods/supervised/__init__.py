"""Variants of supervised fine-tuning: see `workbench.methods.sft.Variant`.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {
    "masked_thought": "masked_thought",
    "iw_sft": "iw_sft",
    "discriminative": "discriminative",
    "poft": "poft",
    "intuitive": "intuitive",
    "key_token": "key_token",
}
