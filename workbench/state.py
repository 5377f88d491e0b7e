"""State: everything a run needs to go on, and nothing else; its snapshots on disk.

What can be derived is not here: the order of rows, the learning rate and every random draw follow from the
settings and the step's number, and what was sampled or scored stands in the store.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.errors import StoreError

Slots = dict[str, Tensor]
"""what an optimiser keeps for one parameter: exp_avg, exp_avg_sq, step, ..."""


@dataclass
class State:
    """After step `step` of a run.

    params   everything trained, by the name the model gives it
    optim    optimiser name -> parameter name -> its slots
    tensors  what else a method keeps as tensors (a running normaliser, a mask)
    json     small values (an adaptive coefficient, a cursor); stored with the step
    """

    params: dict[str, Tensor]
    optim: dict[str, dict[str, Slots]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    json: dict[str, Any] = field(default_factory=dict)
    step: int = 0

    def clone(self) -> State:
        """An independent copy."""
        return State(
            params=clone(self.params),
            optim={name: {param: clone(slots) for param, slots in opt.items()} for name, opt in self.optim.items()},
            tensors=clone(self.tensors),
            json=copy.deepcopy(self.json),
            step=self.step,
        )

    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._flat().values())

    def _flat(self) -> dict[str, Tensor]:
        flat = {f"params/{name}": tensor for name, tensor in self.params.items()}
        flat |= {f"tensors/{name}": tensor for name, tensor in self.tensors.items()}
        for name, opt in self.optim.items():
            for param, slots in opt.items():
                flat |= {f"optim/{name}/{param}/{slot}": tensor for slot, tensor in slots.items()}
        return flat

    def save(self, path: Path) -> None:
        """Write a snapshot; it has its name only when it is whole. Raises StoreError when it cannot be written."""
        flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self._flat().items()}
        new = path.with_suffix(".new")
        try:
            save_file(flat, new, metadata={"step": str(self.step), "json": json.dumps(self.json)})
            with open(new, "rb") as file:
                os.fsync(file.fileno())
            os.replace(new, path)
        except Exception as error:  # safetensors has errors of its own beside OSError
            new.unlink(missing_ok=True)
            raise StoreError(f"Writing the snapshot {path} failed: {error}. The last whole step is intact.") from error

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> State:
        """The state a snapshot holds, with its tensors on `device`."""
        state = cls(params={})
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata()
            state.step, state.json = int(metadata["step"]), json.loads(metadata["json"])
            for name in file.keys():
                kind, _, rest = name.partition("/")
                tensor = file.get_tensor(name)
                if kind != "optim":
                    getattr(state, kind)[rest] = tensor.to(device)
                    continue
                opt, _, rest = rest.partition("/")
                param, _, slot = rest.rpartition("/")
                # AdamW keeps its step count on the CPU whatever the device
                place = "cpu" if slot == "step" else device
                state.optim.setdefault(opt, {}).setdefault(param, {})[slot] = tensor.to(place)
        return state


def clone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
