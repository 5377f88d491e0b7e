"""Variants of policy gradients: see `workbench.methods.grpo.Variant`.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {
    "aapo": "aapo",
    "bon_aware": "bon_aware",
    "entropy_band": "entropy_band",
    "relift": "relift",
    "srft": "srft",
    "uft": "uft",
}
"""Records of the family `policy`."""
