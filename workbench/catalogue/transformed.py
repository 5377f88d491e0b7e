"""Records of the family `transformed`."""

from workbench.catalogue.entry import Entry

ENTRIES: list[Entry] = []
