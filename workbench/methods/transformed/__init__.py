"""Supervised fine-tuning on rows that were written anew: variants whose `rows` do the work.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {
    "question_free": "question_free",
    "critique": "critique",
    "many_shot": "many_shot",
    "contextual": "contextual",
    "thought_mask": "thought_mask",
    "ls_mixture": "ls_mixture",
    "perturb": "perturb",
    "unfamiliar": "unfamiliar",
}
