"""Run folders: a free name for a new run, and the one writer a run may have."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from workbench.errors import SettingError, StoreError

_held: dict[Path, weakref.ref] = {}
"""runs of this process that hold their folder's lock"""


def claim(out: str | os.PathLike, named: bool = True) -> Path:
    """A new, empty folder at `out`, or at the next free `out-2`, `out-3`, ... when that exists.

    An existing folder is never written into. Where the user `named` it the choice is said, and how to go on with the
    old run. Raises SettingError where `out` names no folder, StoreError where it cannot be made.
    """
    if not isinstance(out, (str, os.PathLike)) or not Path(out).name:
        raise SettingError(f"out={out!r}: name the run's folder, such as out='runs/name'.")
    wanted = Path(out)
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=False)
            break
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
        except OSError as error:
            raise StoreError(f"out={str(out)!r}: the folder cannot be made ({error.strerror}).") from error
    (folder / "snapshots").mkdir()
    if named and folder != wanted:
        print(
            f"{wanted} exists and is left as it is; this run goes to {folder}."
            f" To go on with the old one: wb.resume({str(wanted)!r})"
        )
    return folder


def running() -> list[str]:
    """Names of this process's runs that are going on in the background."""
    owners = [reference() for reference in _held.values()]
    return [owner.name for owner in owners if owner is not None and owner.running]


def lock(folder: Path, owner: Any) -> FileLock:
    """The right to write to a run. A run of this process that is not running gives it up to `owner`.

    Raises StoreError when another process has it, or a run of this process is running.
    """
    folder = folder.resolve()
    other = _held.get(folder, lambda: None)()
    if other is not None and other is not owner:
        other.release(f"{folder} was opened again by this process; use the new run object.")
    taken = FileLock(folder / "lock", thread_local=False)  # taken on the worker, given up in the user's thread
    try:
        taken.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(
            f"{folder} is being written by another process. Look at it with wb.open({str(folder)!r}), or stop the"
            " other process first."
        ) from error
    _held[folder] = weakref.ref(owner)
    return taken
