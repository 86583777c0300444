"""Packed integers as half or bfloat16 numbers inside a Triton kernel, exactly, for all 256 values of a byte.

Conversion is slow on every card, so integers are put into the digits of a number that is then subtracted:

    half        0x6400 | u  is 1024 + u        0x6400 | u << 4  is 1024 + 16 u            u = n ^ 8 = n + 8, 0..15
    bfloat16    0x4300 | u  is  128 + u        0x4300 | 7 bits and 0x4300 | sign bit differ by the signed byte

`prmt` selects bytes; `lop3` with 0x6A is (a & b) ^ c, with 0x3C a ^ b. The interpreter gets plain Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unpack_int4(packed, number: tl.constexpr, ASM: tl.constexpr):
    """Bytes (int8) to (high, low) signed nibbles of the same shape, that is to even and odd columns."""
    if not ASM:
        return (packed >> 4).to(number), ((packed << 4).to(tl.int8) >> 4).to(number)
    elif number == tl.float16:
        # High: (1024 + 16 u) / 16 - 72. Low: 1024 + u - 1032. 10 instructions for 8 numbers.
        return tl.inline_asm_elementwise(
            """{ .reg .b32 a, b, sixteenth, high, low;
            mov.b32 sixteenth, 0x2C002C00; mov.b32 high, 0xD480D480; mov.b32 low, 0xE408E408;
            prmt.b32 a, $4, 0x64646464, 0x4140; prmt.b32 b, $4, 0x64646464, 0x4342;
            lop3.b32 $0, a, 0xFFF0FFF0, 0x00800080, 0x6A; lop3.b32 $1, b, 0xFFF0FFF0, 0x00800080, 0x6A;
            lop3.b32 $2, a, 0xFF0FFF0F, 0x00080008, 0x6A; lop3.b32 $3, b, 0xFF0FFF0F, 0x00080008, 0x6A;
            fma.rn.f16x2 $0, $0, sixteenth, high; fma.rn.f16x2 $1, $1, sixteenth, high;
            add.rn.f16x2 $2, $2, low; add.rn.f16x2 $3, $3, low; }""",
            "=&r,=&r,=&r,=&r,r",
            [packed],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )
    else:
        # Only 7 digits: the high nibble is shifted down first. 128 + u - 136. 12 instructions for 8 numbers.
        return tl.inline_asm_elementwise(
            """{ .reg .b32 a, b, c, d, one, offset;
            mov.b32 one, 0x3F803F80; mov.b32 offset, 0xC308C308;
            prmt.b32 a, $4, 0, 0x4140; prmt.b32 b, $4, 0, 0x4342;
            shr.b32 c, a, 4; shr.b32 d, b, 4;
            lop3.b32 $0, c, 0x000F000F, 0x43084308, 0x6A; lop3.b32 $1, d, 0x000F000F, 0x43084308, 0x6A;
            lop3.b32 $2, a, 0x000F000F, 0x43084308, 0x6A; lop3.b32 $3, b, 0x000F000F, 0x43084308, 0x6A;
            fma.rn.bf16x2 $0, $0, one, offset; fma.rn.bf16x2 $1, $1, one, offset;
            fma.rn.bf16x2 $2, $2, one, offset; fma.rn.bf16x2 $3, $3, one, offset; }""",
            "=&r,=&r,=&r,=&r,r",
            [packed],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )


@triton.jit
def unpack_int8(packed, number: tl.constexpr, ASM: tl.constexpr):
    """Bytes (int8) as numbers of the same shape."""
    if not ASM:
        return packed.to(number)
    elif number == tl.float16:
        # 1024 + (q ^ 128) - 1152. 5 instructions for 4 numbers.
        return tl.inline_asm_elementwise(
            """{ .reg .b32 a, offset; mov.b32 offset, 0xE480E480;
            lop3.b32 a, $2, 0x80808080, 0, 0x3C;
            prmt.b32 $0, a, 0x64646464, 0x4140; prmt.b32 $1, a, 0x64646464, 0x4342;
            add.rn.f16x2 $0, $0, offset; add.rn.f16x2 $1, $1, offset; }""",
            "=&r,=&r,r",
            [packed],
            dtype=tl.float16,
            is_pure=True,
            pack=4,
        )
    else:
        # (128 + low seven bits) - (128, or 256 with the sign bit). 8 instructions for 4 numbers.
        return tl.inline_asm_elementwise(
            """{ .reg .b32 a, b, c, d, minus; mov.b32 minus, 0xBF80BF80;
            prmt.b32 a, $2, 0x43434343, 0x4140; prmt.b32 b, $2, 0x43434343, 0x4342;
            and.b32 c, a, 0xFF80FF80; and.b32 d, b, 0xFF80FF80;
            and.b32 a, a, 0xFF7FFF7F; and.b32 b, b, 0xFF7FFF7F;
            fma.rn.bf16x2 $0, c, minus, a; fma.rn.bf16x2 $1, d, minus, b; }""",
            "=&r,=&r,r",
            [packed],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
