"""Records of the family `selection`."""

from workbench.catalogue.entry import Entry

ENTRIES: list[Entry] = []
