/* One head's share of chatglm_attend_one, and its forms for each instruction set. */
#ifndef CHATGLM_ATTENTION_H
#define CHATGLM_ATTENTION_H

#include "internal.h"

#define WIDTH_STEP 16 /* buffers are padded to this many floats, the widest vector */

INLINE int64_t padded_width(int64_t width) { return (width + WIDTH_STEP - 1) / WIDTH_STEP * WIDTH_STEP; }

typedef struct {
    const float *query;      /* [D], turned and divided by sqrt(D); padded with 0 */
    const float *key;        /* [D] of the new position, turned; padded */
    const float *value;      /* [D] of the new position; padded */
    uint16_t *keys, *values; /* [length + 1, D] in IEEE half; the last row is written */
    int64_t width, length;
} Head;

/* Appends key and value, then total[D] = attention of the query to all rows; total is padded. */
typedef void (*HeadKernel)(float *total, const Head *head);

void attend_head_scalar(float *total, const Head *head);
#if HAS_X86
void attend_head_avx2(float *total, const Head *head);
void attend_head_avx512(float *total, const Head *head);
#endif

#endif
