/* Attention with AVX2, FMA and F16C. */
#include "internal.h"
#if HAS_X86
#include "target_avx2.h"

#define VECTOR 8
#include "attention_head.h"
#include "attention_prompt.h"

INLINE Floats load_halves(const uint16_t *halves) {
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
}

INLINE void store_halves(uint16_t *halves, Floats values) {
    _mm_storeu_si128((__m128i *)halves, _mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT));
}

INLINE float add_all(Floats values) {
    __m256 lanes = (__m256)values;
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

const Attention avx2_attention = {attend_head, attend_prompt};

#include "target_end.h"
#endif
