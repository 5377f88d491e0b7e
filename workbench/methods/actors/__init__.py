"""Policy gradients with more than a group to compare with: value heads, memories, modes.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {}
