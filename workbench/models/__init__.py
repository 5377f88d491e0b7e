"""Models that ship with the package. No torch here: `TINY` is the folder that transformers loads from."""

from __future__ import annotations

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
"""the checkpoint behind `wb.load("tiny")`; its README.md is the model card"""
