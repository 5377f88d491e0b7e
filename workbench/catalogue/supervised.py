"""Records of the family `supervised`."""

from workbench.catalogue.entry import Entry

ENTRIES: list[Entry] = []
