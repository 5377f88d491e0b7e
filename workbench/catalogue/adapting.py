"""Records of the family `adapting`."""

from workbench.catalogue.entry import Entry

ENTRIES: list[Entry] = []
