"""Records of the family `selftraining`."""

from workbench.catalogue.entry import Entry

ENTRIES: list[Entry] = []
