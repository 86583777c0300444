/* Attention with AVX-512. */
#include "internal.h"
#if HAS_X86
#include "target_avx512.h"

#define VECTOR 16
#include "attention_head.h"
#include "attention_prompt.h"

INLINE Floats load_halves(const uint16_t *halves) {
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves));
}

INLINE void store_halves(uint16_t *halves, Floats values) {
    _mm256_storeu_si256((__m256i *)halves, _mm512_cvtps_ph((__m512)values, _MM_FROUND_TO_NEAREST_INT));
}

INLINE float add_all(Floats values) { return _mm512_reduce_add_ps((__m512)values); }

const Attention avx512_attention = {attend_head, attend_prompt};

#include "target_end.h"
#endif
