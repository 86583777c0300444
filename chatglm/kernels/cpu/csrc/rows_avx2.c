/* Row kernels for AVX2: products of bytes by vpmaddubsw, which adds pairs in 16 bits. */
#include "internal.h"
#if HAS_X86
#include "target_avx2.h"

#include "portable.h"

#define HALF_LINE 32

static void read_scales(float *result, const void *scale, int64_t first, int64_t count, int is_half) {
    if (!is_half) {
        memcpy(result, (const float *)scale + first, (size_t)count * 4);
        return;
    }
    const uint16_t *halves = (const uint16_t *)scale + first;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(result + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + i))));
    for (; i < count; i++) result[i] = half_to_float(halves[i]);
}

INLINE __m256i load_half_line(const Row *row, int64_t byte) {
    int64_t left = row->bytes - byte;
    if (left >= HALF_LINE) return _mm256_loadu_si256((const __m256i *)(row->packed + byte));
    uint8_t bytes[HALF_LINE] = {0};
    if (left > 0) memcpy(bytes, row->packed + byte, (size_t)left);
    return _mm256_loadu_si256((const __m256i *)bytes);
}

/* start + sums of 8 lanes: half a line of weights times its activations. */
INLINE __m256i lane_products(__m256i start, __m256i bytes, const uint8_t *integers, int bits) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i even = _mm256_loadu_si256((const __m256i *)integers);
    if (bits == 8) {
        /* |w| <= 128 and |q| <= 127: a pair is at most 32512, where (w + 128) would overflow 16 bits. */
        __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(bytes), _mm256_sign_epi8(even, bytes));
        return _mm256_madd_epi16(pairs, ones);
    }
    const __m256i mask = _mm256_set1_epi8(15), eight = _mm256_set1_epi8(8);
    __m256i high = _mm256_xor_si256(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask), eight);
    __m256i low = _mm256_xor_si256(_mm256_and_si256(bytes, mask), eight);
    __m256i odd = _mm256_loadu_si256((const __m256i *)(integers + LINE));
    __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(high, even), _mm256_maddubs_epi16(low, odd));
    return _mm256_add_epi32(start, _mm256_madd_epi16(pairs, ones));
}

INLINE __m256 half_line_scales(const Row *row, int64_t line, int64_t half) {
    float low = row->scales[(4 * line + 2 * half) >> row->scale_shift];
    float high = row->scales[(4 * line + 2 * half + 1) >> row->scale_shift];
    return _mm256_set_m128(_mm_set1_ps(high), _mm_set1_ps(low));
}

INLINE float add_all(__m256 lanes) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE void int8_row_of(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n) {
    __m256 total[MAX_TOKENS];
    int64_t width = line_columns(bits), lines = (row->bytes + LINE - 1) / LINE;
    const Int8Layout layout = int8_layout(lines, bits);
    for (int t = 0; t < n; t++) total[t] = _mm256_setzero_ps();
    for (int64_t line = 0; line < lines; line++) {
        _mm_prefetch((const char *)row->packed + line * LINE + 4096, _MM_HINT_T0);
        for (int64_t half = 0; half < 2; half++) {
            __m256i bytes = load_half_line(row, line * LINE + half * HALF_LINE);
            for (int t = 0; t < n; t++) {
                const uint8_t *token = x + t * stride;
                /* Of the two groups of 64 columns of an int4 line, each half has one. */
                const float *scales = (const float *)(token + layout.scale) + (bits == 4 ? 2 * line + half : line);
                __m256 scale = _mm256_broadcast_ss(scales);
                __m256i start = _mm256_setzero_si256();
                if (row->scales) {
                    scale = _mm256_mul_ps(scale, half_line_scales(row, line, half));
                    start = _mm256_loadu_si256((const __m256i *)(token + layout.start) + 2 * line + half);
                }
                __m256i products = lane_products(start, bytes, token + line * width + half * HALF_LINE, bits);
                total[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, total[t]);
            }
        }
    }
    for (int t = 0; t < n; t++) {
        sums[t] = add_all(total[t]);
        if (bits == 4 && !row->scales) sums[t] += *(const float *)(x + t * stride + layout.constant);
    }
}

static void int8_row(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n) {
    FOR_EACH_WIDTH_AND_COUNT(int8_row_of, sums, row, bits, x, stride, n)
}

INLINE void float_row_256(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n) {
    __m256 total[MAX_TOKENS];
    int64_t lines = (row->bytes + LINE - 1) / LINE;
    for (int t = 0; t < n; t++) total[t] = _mm256_setzero_ps();
    for (int64_t line = 0; line < lines; line++)
        for (int64_t half = 0; half < 2; half++) {
            __m256i bytes = load_half_line(row, line * LINE + half * HALF_LINE);
            __m256 part[MAX_TOKENS];
            for (int t = 0; t < n; t++) part[t] = row->scales ? _mm256_setzero_ps() : total[t];
#pragma GCC unroll 8
            for (int k = 0; k < 32 / bits; k++) {
                __m256i shifted = _mm256_slli_epi32(bytes, 32 - bits - bits * k);
                __m256 weights = _mm256_cvtepi32_ps(_mm256_srai_epi32(shifted, 32 - bits));
                for (int t = 0; t < n; t++) {
                    const uint8_t *values = x + t * stride + line * float_line_bytes(bits) + k * LINE;
                    __m256 half_values = _mm256_loadu_ps((const float *)(values + half * HALF_LINE));
                    part[t] = _mm256_fmadd_ps(weights, half_values, part[t]);
                }
            }
            __m256 scale = row->scales ? half_line_scales(row, line, half) : _mm256_setzero_ps();
            for (int t = 0; t < n; t++)
                total[t] = row->scales ? _mm256_fmadd_ps(part[t], scale, total[t]) : part[t];
        }
    for (int t = 0; t < n; t++) sums[t] = add_all(total[t]);
}

static void float_row(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n) {
    FOR_EACH_WIDTH_AND_COUNT(float_row_256, sums, row, bits, x, stride, n)
}

static void prepare_int8(uint8_t *prepared, const float *x, int64_t columns, int bits) {
    prepare_int8_with(quantize_group, prepared, x, columns, bits);
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

const Kernels avx2_kernels = {
    .int8_row = int8_row,
    .float_row = float_row,
    .prepare_int8 = prepare_int8,
    .prepare_float = prepare_float,
    .dequantize_row = dequantize_row,
    .gelu = gelu,
    .rotate = rotate,
    .read_scales = read_scales,
    .matrix_int8 = NULL,
};

#include "target_end.h"
#endif
