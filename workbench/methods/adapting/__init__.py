"""Methods that choose which weights train: see `workbench.optimiser.Scope`.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {}
