/* Row kernels for AVX-512: products of bytes by vpdpbusd (VNNI), which adds four into 32 bits. */
#include "internal.h"
#if HAS_X86
#include "target_avx512.h"

#include "groups_avx512.h"
#include "portable.h"

static void read_scales(float *result, const void *scale, int64_t first, int64_t count, int is_half) {
    if (!is_half) {
        memcpy(result, (const float *)scale + first, (size_t)count * 4);
        return;
    }
    const uint16_t *halves = (const uint16_t *)scale + first;
    int64_t i = 0;
    for (; i < count; i += 16) {
        __mmask16 mask = count - i >= 16 ? 0xffff : (__mmask16)((1u << (count - i)) - 1);
        _mm512_mask_storeu_ps(result + i, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, halves + i)));
    }
}

INLINE __m512i load_bytes(const Row *row, int64_t line) {
    int64_t left = row->bytes - line * LINE;
    __mmask64 mask = left >= LINE ? ~0ull : (1ull << left) - 1;
    return _mm512_maskz_loadu_epi8(mask, row->packed + line * LINE);
}

/* The scale of every lane of a line; four floats cover it whatever the group is. */
INLINE __m512 group_scales(const Row *row, int64_t line) {
    const __m512i quarters = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    __m512 four = _mm512_castps128_ps512(_mm_loadu_ps(row->scales + ((4 * line) >> row->scale_shift)));
    return _mm512_permutexvar_ps(_mm512_srl_epi32(quarters, _mm_cvtsi32_si128(row->scale_shift)), four);
}

/* Far enough ahead that the memory has answered, near enough that the line is still in the cache. */
#ifndef PREFETCH_BYTES
#define PREFETCH_BYTES 8192
#endif

/* (a ^ b) & c in one instruction. */
#define XOR_AND 0x28

/* The scale of the activations of every lane: an int4 line has two groups of 64 columns, an int8 line one. */
INLINE __m512 token_scales(const float *scales, int64_t line, int bits) {
    if (bits == 8) return _mm512_set1_ps(scales[line]);
    return _mm512_mask_broadcastss_ps(_mm512_set1_ps(scales[2 * line]), 0xff00, _mm_load_ss(scales + 2 * line + 1));
}

INLINE void int8_row_of(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n) {
    const __m512i mask = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8);
    __m512 total[MAX_TOKENS];
    int64_t width = line_columns(bits), lines = (row->bytes + LINE - 1) / LINE;
    const Int8Layout layout = int8_layout(lines, bits);
    for (int t = 0; t < n; t++) total[t] = _mm512_setzero_ps();
    for (int64_t line = 0; line < lines; line++) {
        _mm_prefetch((const char *)row->packed + line * LINE + PREFETCH_BYTES, _MM_HINT_T0);
        __m512i bytes = line + 1 < lines ? _mm512_loadu_si512(row->packed + line * LINE) : load_bytes(row, line);
        __m512i high, low;
        __mmask64 negative = 0;
        if (bits == 8) {
            negative = _mm512_movepi8_mask(bytes);
            high = low = _mm512_abs_epi8(bytes);
        } else {
            high = _mm512_ternarylogic_epi32(_mm512_srli_epi16(bytes, 4), eight, mask, XOR_AND);
            low = _mm512_ternarylogic_epi32(bytes, eight, mask, XOR_AND);
        }
        __m512 group_scale = row->scales ? group_scales(row, line) : _mm512_setzero_ps();
        for (int t = 0; t < n; t++) {
            const uint8_t *token = x + t * stride, *integers = token + line * width;
            __m512i sum = _mm512_setzero_si512();
            if (bits == 8) { /* |w| (sign(w) q), since an offset of 128 would drown small weights in float32 */
                __m512i q = _mm512_loadu_si512(integers);
                q = _mm512_mask_sub_epi8(q, negative, _mm512_setzero_si512(), q);
                sum = _mm512_dpbusd_epi32(sum, high, q);
            } else {
                if (row->scales) sum = _mm512_loadu_si512(token + layout.start + line * LANES * 4);
                sum = _mm512_dpbusd_epi32(sum, high, _mm512_loadu_si512(integers));
                sum = _mm512_dpbusd_epi32(sum, low, _mm512_loadu_si512(integers + LINE));
            }
            __m512 scale = token_scales((const float *)(token + layout.scale), line, bits);
            if (row->scales) scale = _mm512_mul_ps(scale, group_scale);
            total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, total[t]);
        }
    }
    for (int t = 0; t < n; t++) {
        sums[t] = _mm512_reduce_add_ps(total[t]);
        if (bits == 4 && !row->scales) sums[t] += *(const float *)(x + t * stride + layout.constant);
    }
}

static void int8_row(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n) {
    FOR_EACH_WIDTH_AND_COUNT(int8_row_of, sums, row, bits, x, stride, n)
}

/* The value of the nibble (bits 4k..4k+3) or byte k of every lane. A permutation looks at the low four bits of its
 * indices only, so it is a table of the sixteen values of a nibble. */
INLINE __m512 lane_floats(__m512i bytes, int k, int bits) {
    if (bits == 8)
        return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(bytes, (unsigned)(24 - 8 * k)), 24));
    const __m512 values = _mm512_set_ps(-1, -2, -3, -4, -5, -6, -7, -8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, (unsigned)(4 * k)), values);
}

INLINE void float_row_512(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n) {
    __m512 total[MAX_TOKENS][2];
    int64_t lines = (row->bytes + LINE - 1) / LINE;
    for (int t = 0; t < n; t++) total[t][0] = total[t][1] = _mm512_setzero_ps();
    for (int64_t line = 0; line < lines; line++) {
        _mm_prefetch((const char *)row->packed + line * LINE + PREFETCH_BYTES, _MM_HINT_T0);
        __m512i bytes = line + 1 < lines ? _mm512_loadu_si512(row->packed + line * LINE) : load_bytes(row, line);
        __m512 part[MAX_TOKENS][2]; /* two sums each, because an addition waits for the one before it */
        for (int t = 0; t < n; t++) {
            part[t][0] = row->scales ? _mm512_setzero_ps() : total[t][0];
            part[t][1] = row->scales ? _mm512_setzero_ps() : total[t][1];
        }
#pragma GCC unroll 8
        for (int k = 0; k < 32 / bits; k++) {
            __m512 weights = lane_floats(bytes, k, bits);
            for (int t = 0; t < n; t++) {
                const uint8_t *values = x + t * stride + line * float_line_bytes(bits) + k * LINE;
                part[t][k & 1] = _mm512_fmadd_ps(weights, _mm512_loadu_ps(values), part[t][k & 1]);
            }
        }
        for (int t = 0; t < n; t++) {
            if (row->scales) {
                __m512 both = _mm512_add_ps(part[t][0], part[t][1]);
                total[t][0] = _mm512_fmadd_ps(both, group_scales(row, line), total[t][0]);
            } else {
                total[t][0] = part[t][0];
                total[t][1] = part[t][1];
            }
        }
    }
    for (int t = 0; t < n; t++) sums[t] = _mm512_reduce_add_ps(_mm512_add_ps(total[t][0], total[t][1]));
}

static void float_row(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n) {
    FOR_EACH_WIDTH_AND_COUNT(float_row_512, sums, row, bits, x, stride, n)
}

static void prepare_int8(uint8_t *prepared, const float *x, int64_t columns, int bits) {
    prepare_int8_with(quantize_group_avx512, prepared, x, columns, bits);
}

static void prepare_float(uint8_t *prepared, const float *x, int64_t columns, int bits) {
    prepare_float_portable(prepared, x, columns, bits);
}

static void dequantize_row(float *result, const Row *row, int bits, int64_t columns) {
    dequantize_row_portable(result, row, bits, columns);
}

static void gelu(float *x, int64_t count) { gelu_portable(x, count); }

static void rotate(float *x, const float *cosine, const float *sine, int64_t width, int rotary_dims) {
    rotate_portable(x, cosine, sine, width, rotary_dims);
}

const Kernels avx512_kernels = {
    .int8_row = int8_row,
    .float_row = float_row,
    .prepare_int8 = prepare_int8,
    .prepare_float = prepare_float,
    .dequantize_row = dequantize_row,
    .gelu = gelu,
    .rotate = rotate,
    .read_scales = read_scales,
    .matrix_int8 = matrix_int8_avx512,
};

#include "target_end.h"
#endif
