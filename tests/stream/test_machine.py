"""What the processes ask of the C library and of oneDNN, so that their memory does not grow."""

from __future__ import annotations

import ctypes
import os
from multiprocessing import Pipe, get_context

import pytest

from bench.soak import resident_bytes
from stream.control import hear
from stream.machine import give_back_memory, keep_no_caches
from tests.stream.children import counting_heaps

BLOCK_BYTES = 2_000
BLOCKS = 50_000


def test_freed_memory_goes_back_to_the_system() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("the C library is not glibc")
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK_BYTES) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK_BYTES)
    for block in blocks[:-1]:  # the last one pins the end of the heap
        libc.free(block)
    before, _ = resident_bytes(os.getpid())
    give_back_memory()
    after, _ = resident_bytes(os.getpid())
    libc.free(blocks[-1])
    assert before - after > 0.8 * BLOCK_BYTES * BLOCKS


def test_the_threads_of_the_capture_share_one_heap() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_info"):
        pytest.skip("the C library is not glibc")
    near, far = Pipe()
    with near, far:
        process = get_context("spawn").Process(target=counting_heaps, args=(far,))
        process.start()
        assert near.poll(60), "it said nothing"
        assert hear(near).facts == {"heaps": "1"}
        process.join()


def test_the_recognizer_keeps_no_caches_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, buffers = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", {"MKL_DISABLE_FAST_MM": "1"}
    for before, after in (({}, {kernels: "16"} | buffers), ({kernels: "500"}, {kernels: "500"} | buffers)):
        monkeypatch.setattr(os, "environ", before)
        keep_no_caches()
        assert os.environ == after
