"""What this machine's processor can multiply."""

from __future__ import annotations

import torch


def knows_bfloat16() -> bool:
    """Whether torch has kernels for bfloat16 here, fast or not; without AVX-512 it multiplies number by number."""
    return bool(torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512"))  # type: ignore[no-untyped-call]


def multiplies_bfloat16() -> bool:
    """Whether it has products in bfloat16 (AMX, AVX512-BF16); without them bfloat16 gains nothing sure."""
    can = torch.cpu.get_capabilities()
    return knows_bfloat16() and any(can.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def adds_int8_exactly() -> bool:
    """Whether products of signed and unsigned bytes are added without loss (with VNNI, and where there is no AVX2).

    AVX2 alone adds two such products in 16 bits, where the largest no longer fit.
    """
    can = torch.cpu.get_capabilities()
    return not can.get("avx2", False) or any(can.get(name, False) for name in ("avx512_vnni", "avx_vnni"))


def multiplies_int8() -> bool:
    """Whether torch has products of bytes here whose sums are exact, and bfloat16 for what lies between them."""
    return knows_bfloat16() and adds_int8_exactly()
