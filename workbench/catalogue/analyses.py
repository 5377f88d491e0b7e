"""Records of the family `analyses`."""

from workbench.catalogue.entry import Entry

ENTRIES: list[Entry] = []
