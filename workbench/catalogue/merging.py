"""Records of the family `merging`."""

from workbench.catalogue.entry import Entry

ENTRIES: list[Entry] = []
