"""Records of the family `actors`."""

from workbench.catalogue.entry import Entry

ENTRIES: list[Entry] = []
