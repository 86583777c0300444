/* Attention on any processor. */
#define VECTOR 4
#include "attention_head.h"
#include "attention_prompt.h"

typedef uint16_t Halves __attribute__((vector_size(VECTOR * 2), aligned(2), may_alias));

/* Exponent and fraction moved into place give the value times 2^-112, denormals included. */
INLINE Floats load_halves(const uint16_t *halves) {
    Ints bits = __builtin_convertvector(*(const Halves *)halves, Ints);
    Ints size = bits & 0x7fff;
    Floats values = (Floats)(size << 13) * 0x1p112f;
    Ints is_not_finite = (Ints)(size >= 0x7c00);
    return (Floats)((Ints)values | (is_not_finite & 0x7f800000) | ((bits & 0x8000) << 16));
}

static uint16_t float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
    if (size >= 0x7f800000) /* infinity, NaN */
        return (uint16_t)(sign | 0x7c00 | (size > 0x7f800000 ? 0x200 : 0));
    if (size >= 0x47800000) /* 65536 */
        return (uint16_t)(sign | 0x7c00);
    if (size < 0x38800000) /* 2^-14: a denormal, or the smallest normal number after rounding */
        return (uint16_t)(sign | (uint32_t)((fabsf(value) * 0x1p24f + 12582912.0f) - 12582912.0f));
    size += 0xfff + ((size >> 13) & 1); /* to nearest, ties to even; may carry into infinity */
    return (uint16_t)(sign | (size - 0x38000000) >> 13);
}

INLINE void store_halves(uint16_t *halves, Floats values) {
    for (int i = 0; i < VECTOR; i++) halves[i] = float_to_half(values[i]);
}

INLINE float add_all(Floats values) { return (values[0] + values[2]) + (values[1] + values[3]); }

const Attention scalar_attention = {attend_head, attend_prompt};
