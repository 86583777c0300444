/* One head's share of attention to a cache, of a new position or of a prompt, for each instruction set. */
#ifndef CHATGLM_ATTENTION_H
#define CHATGLM_ATTENTION_H

#include "internal.h"

#define WIDTH_STEP 16 /* buffers are padded to this many floats, the widest vector */

INLINE int64_t padded_width(int64_t width) { return (width + WIDTH_STEP - 1) / WIDTH_STEP * WIDTH_STEP; }

typedef struct {
    const float *query;      /* [D], rotated and divided by sqrt(D); padded with 0 */
    const float *key;        /* [D] of the new position, rotated; padded */
    const float *value;      /* [D] of the new position; padded */
    uint16_t *keys, *values; /* [length + 1, D] in IEEE half; the last row is written */
    int64_t width, length;
} Head;

/* Appends key and value, then total[D] = attention of the query to all rows; total is padded. */
typedef void (*HeadKernel)(float *total, const Head *head);

#define PROMPT_BLOCK 512  /* with D = 128: 256 KB of keys and as much of values, in the second-level cache */
#define MAX_WIDTH 512     /* D of a prompt's attention: queries are copied to rows of a block's length */
#define MAX_QUERIES 12    /* that meet keys and values together */
#define MAX_TILE 32       /* two of the widest vectors */

/* One head's share of chatglm_attend_prompt: every query sees every position. */
typedef struct {
    const float *queries; /* rotated; D each, `query_stride` floats apart */
    float *totals;        /* the result; D each, `total_stride` floats apart */
    const uint16_t *keys, *values; /* [num_positions, D] in IEEE half */
    int64_t query_stride, total_stride, num_queries, num_positions, width;
} Prompt;

/* Memory of one thread. */
typedef struct {
    float *keys, *values;    /* of a block of positions, in tiles */
    float *queries, *scores; /* [MAX_QUERIES][PROMPT_BLOCK] */
    float *largest, *sums;   /* [num_queries] */
} PromptSpace;

/* The attention of one instruction set. */
typedef struct {
    HeadKernel one;
    void (*prompt)(const Prompt *prompt, PromptSpace *space);
} Attention;

extern const Attention scalar_attention;
#if HAS_X86
extern const Attention avx2_attention;
extern const Attention avx512_attention;
#endif

#endif
