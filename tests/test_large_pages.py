"""Memory in large pages: the bytes asked for, where they can be had, and given back with the last tensor."""

import gc
import mmap
import sys
from pathlib import Path

import pytest
import torch

from workbench.adapters import pages

CPU = torch.device("cpu")
MAPS = Path("/proc/self/smaps")


def mapped(address):
    """What the kernel says of the mapping that holds this address; None: there is none."""
    for block in MAPS.read_text().split("VmFlags")[:-1]:
        head = next(line for line in block.splitlines() if "-" in line.split()[0] and ":" not in line.split()[0])
        first, end = (int(part, 16) for part in head.split()[0].split("-"))
        if first <= address < end:
            return {line.split(":")[0]: line.split()[1] for line in block.splitlines() if line.endswith("kB")}
    return None


@pytest.mark.parametrize("size", [0, 1, 5 << 10, pages.PAGE - 1, pages.PAGE, 3 * pages.PAGE + 17])
def test_as_many_bytes_as_asked_for(size):
    room = pages.empty(size, CPU)
    assert room.dtype == torch.uint8 and room.shape == (size,) and room.is_contiguous()
    room.fill_(7)
    assert int(room.long().sum()) == 7 * size
    if size >= pages.PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        assert room.data_ptr() % pages.PAGE == 0


@pytest.mark.skipif(not MAPS.exists() or not hasattr(mmap, "MADV_HUGEPAGE"), reason="needs Linux with large pages")
def test_a_view_keeps_it_and_the_last_one_gives_it_back():
    size = 8 * pages.PAGE
    room = pages.empty(size, CPU).fill_(1)
    asked = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if asked.exists() and "[never]" not in asked.read_text():
        assert int(mapped(room.data_ptr())["AnonHugePages"]) > 0
    end = room[-8:].view(torch.float32)
    address = end.data_ptr()
    del room
    gc.collect()
    assert mapped(address) is not None and end[0] > 0
    del end
    gc.collect()
    held = mapped(address)
    assert held is None or int(held["Size"]) < size >> 10, "the memory is still there"


def test_where_there_are_none_it_is_ordinary_memory(monkeypatch):
    def refused(*args, **inputs):
        raise OSError(22, "Invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr(pages.mmap, "mmap", refused)
        room = pages.empty(2 * pages.PAGE, CPU).fill_(3)
    assert len(room) == 2 * pages.PAGE and int(room[-1]) == 3
    monkeypatch.delattr(pages.mmap, "MADV_HUGEPAGE", raising=sys.platform == "linux")
    assert len(pages.empty(pages.PAGE, CPU)) == pages.PAGE
