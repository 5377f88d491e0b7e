"""Methods that sample, filter and train in rounds: see `workbench.methods.bootstrap`.

`METHODS`: name -> the module here whose METHOD it is. No torch in this file.
"""

METHODS: dict[str, str] = {
    "star": "star",
    "rft": "rft",
    "concise": "concise",
    "lmsi": "lmsi",
    "ssr": "ssr",
    "s3ft": "s3ft",
    "fine_tune_cot": "fine_tune_cot",
    "trice": "trice",
    "dpo_st": "dpo_st",
}
