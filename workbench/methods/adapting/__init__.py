"""Methods that choose which weights train: see `workbench.optimiser.Scope`.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {
    "concept_ablation": "concept_ablation",
    "half": "half",
    "chain_of_lora": "chain_of_lora",
    "lift": "lift",
    "valve": "valve",
}
