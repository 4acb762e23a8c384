"""The paging forms of all architectures but x86_64, one of each kind that differs."""

from __future__ import annotations

from typing import Final

from stages.arch import aarch64, loongarch64, ppc64, riscv64, s390x

ARM64_64K_52: Final = aarch64.paging_form(16, 52)
ARM64_16K_52: Final = aarch64.paging_form(14, 52)
RISCV_SV39: Final = riscv64.paging_form(39)
S390X_3: Final = s390x.paging_form(3)

OTHER_FORMS: Final = (
    *(aarch64.paging_form(12, va_bits) for va_bits in (39, 48, 52)),
    *(aarch64.paging_form(14, va_bits) for va_bits in (36, 47, 48)),
    *(aarch64.paging_form(16, va_bits) for va_bits in (42, 48)),
    aarch64.paging_form(16, 52, 48),
    ARM64_16K_52,
    ARM64_64K_52,
    RISCV_SV39,
    riscv64.paging_form(48),
    riscv64.paging_form(57),
    S390X_3,
    s390x.paging_form(4),
    s390x.paging_form(5),
    ppc64.paging_form(12),
    ppc64.paging_form(16),
    *(loongarch64.paging_form(12, n_levels) for n_levels in (3, 4)),
    *(loongarch64.paging_form(14, n_levels) for n_levels in (2, 3)),
    *(loongarch64.paging_form(16, n_levels) for n_levels in (2, 3)),
)
