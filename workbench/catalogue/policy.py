"""Records of the family `policy`."""

from workbench.catalogue.entry import Entry

ENTRIES: list[Entry] = []
