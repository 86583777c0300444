/* Rounding of activations with AVX-512; include after target_avx512.h. */
#ifndef CHATGLM_GROUPS_AVX512_H
#define CHATGLM_GROUPS_AVX512_H

#include <immintrin.h>
#include <math.h>

#include "internal.h"

/* quantize_group of portable.h, to the same bits: the quotients are divisions here too. Returns the integers. */
INLINE __m512i quantize_in_register(float *scale, const float *x, int64_t count) {
    const __m512 limit = _mm512_set1_ps(3.402823466e38f), most = _mm512_set1_ps(127.0f);
    __m512 values[GROUP / LANES], largest = _mm512_setzero_ps();
    __mmask16 finite = 0xffff;
    for (int i = 0; i < GROUP / LANES; i++) {
        int64_t left = count - i * LANES;
        __mmask16 present = left >= LANES ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
        values[i] = _mm512_maskz_loadu_ps(present, x + i * LANES);
        __m512 size = _mm512_abs_ps(values[i]);
        finite &= _mm512_cmp_ps_mask(size, limit, _CMP_LE_OQ);
        largest = _mm512_max_ps(largest, size);
    }
    *scale = finite == 0xffff ? _mm512_reduce_max_ps(largest) / 127.0f : NAN;
    if (!(*scale > 0.0f)) return _mm512_setzero_si512();
    __m512 divisor = _mm512_set1_ps(*scale);
    __m128i quarters[GROUP / LANES];
    for (int i = 0; i < GROUP / LANES; i++) {
        __m512 quotient = _mm512_roundscale_ps(_mm512_div_ps(values[i], divisor), 0);
        quotient = _mm512_max_ps(_mm512_min_ps(quotient, most), _mm512_sub_ps(_mm512_setzero_ps(), most));
        quarters[i] = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(quotient));
    }
    __m512i integers = _mm512_castsi128_si512(quarters[0]);
    integers = _mm512_inserti32x4(integers, quarters[1], 1);
    integers = _mm512_inserti32x4(integers, quarters[2], 2);
    return _mm512_inserti32x4(integers, quarters[3], 3);
}

INLINE float quantize_group_avx512(int8_t *integers, const float *x, int64_t count) {
    float scale;
    _mm512_storeu_si512(integers, quantize_in_register(&scale, x, count));
    return scale;
}

#endif
