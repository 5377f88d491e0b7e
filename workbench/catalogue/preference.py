"""Records of the family `preference`."""

from workbench.catalogue.entry import Entry

ENTRIES: list[Entry] = []
