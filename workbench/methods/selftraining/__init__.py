"""Methods that sample, filter and train in rounds: see `workbench.methods.bootstrap`.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {}
