"""The store: a run's record, one SQLite file. `file` writes and reads it; further questions of views stand beside."""

from workbench.store.file import ROLLOUT_COLUMNS, Store, to_json

__all__ = ["ROLLOUT_COLUMNS", "Store", "to_json"]
