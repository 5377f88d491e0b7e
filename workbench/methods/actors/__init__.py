"""Policy gradients with more than a group to compare with: value heads, memories, modes.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {name: name for name in ("ppo", "markovian", "memory_r_plus", "adaptive_thinking", "mind")}
