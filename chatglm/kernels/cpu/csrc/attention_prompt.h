/* What a head does with a whole prompt, written once and compiled for each instruction set after attention_head.h.
 *
 *     block of 512 positions      keys [tile of positions][D][TILE]      values [tile of columns][position][TILE]
 *     tile of queries             scores = queries keys -> e^(score - largest so far) -> totals += scores values
 *
 * Keys and values are written out as floats once for a block, so that both products are the same loop: numbers of the
 * left, broadcast, times two vectors of the right. What was summed before a block is scaled down where the block has a
 * larger score, as in attention_head.h.
 */
#define TILE (2 * VECTOR)
#define QUERIES (VECTOR == 16 ? 12 : 6) /* two registers each, of 32 with AVX-512 and else of 16 */

/* products[q][2 vectors] = sum over i of left[q][i] * right[i][TILE] */
INLINE void multiply(Floats products[QUERIES][2], const float *left, const float *right, int64_t count) {
#pragma GCC unroll 12
    for (int q = 0; q < QUERIES; q++) products[q][0] = products[q][1] = (Floats){0};
    for (int64_t i = 0; i < count; i++) {
        Floats first = load_floats(right + i * TILE), second = load_floats(right + i * TILE + VECTOR);
#pragma GCC unroll 12
        for (int q = 0; q < QUERIES; q++) {
            products[q][0] += left[q * PROMPT_BLOCK + i] * first;
            products[q][1] += left[q * PROMPT_BLOCK + i] * second;
        }
    }
}

INLINE Floats load_up_to_a_vector(const uint16_t *halves, int64_t count) {
    return count >= VECTOR ? load_halves(halves) : count > 0 ? load_some_halves(halves, count) : (Floats){0};
}

/* Tiles past the last position hold zeros. */
static void unpack_keys(float *tiles, const uint16_t *keys, int64_t width, int64_t count) {
    float row[VECTOR];
    for (int64_t first = 0; first < count; first += TILE, tiles += width * TILE)
        for (int64_t s = 0; s < TILE; s++)
            for (int64_t d = 0; d < width; d += VECTOR) {
                int64_t left = first + s < count ? width - d : 0;
                store_floats(row, load_up_to_a_vector(keys + (first + s) * width + d, left));
                for (int64_t i = 0; i < VECTOR && d + i < width; i++) tiles[(d + i) * TILE + s] = row[i];
            }
}

static void unpack_values(float *tiles, const uint16_t *values, int64_t width, int64_t count) {
    for (int64_t first = 0; first < width; first += TILE)
        for (int64_t s = 0; s < count; s++, tiles += TILE)
            for (int64_t d = 0; d < TILE; d += VECTOR)
                store_floats(tiles + d, load_up_to_a_vector(values + s * width + first + d, width - first - d));
}

/* Queries first .. first + QUERIES divided by sqrt(D); past the last one, the last one again. */
static void copy_queries(float *queries, const Prompt *prompt, int64_t first) {
    float factor = 1.0f / sqrtf((float)prompt->width);
    for (int64_t q = 0; q < QUERIES; q++) {
        int64_t index = first + q < prompt->num_queries ? first + q : prompt->num_queries - 1;
        const float *query = prompt->queries + index * prompt->query_stride;
        for (int64_t d = 0; d < prompt->width; d++) queries[q * PROMPT_BLOCK + d] = factor * query[d];
    }
}

static void score_tiles(float *scores, const float *queries, const float *keys, int64_t width, int64_t count) {
    Floats products[QUERIES][2];
    for (int64_t s = 0; s < count; s += TILE) {
        multiply(products, queries, keys + s * width, width);
        for (int q = 0; q < QUERIES; q++) {
            store_floats(scores + q * PROMPT_BLOCK + s, products[q][0]);
            store_floats(scores + q * PROMPT_BLOCK + s + VECTOR, products[q][1]);
        }
    }
}

/* totals = totals * factor + scores values, for `n` queries; totals lie `stride` floats apart. */
static void add_tiles(float *totals, int64_t stride, const float *factors, const float *scores, const float *values,
                      int64_t width, int64_t count, int64_t n) {
    Floats products[QUERIES][2];
    for (int64_t d = 0; d < width; d += TILE, values += count * TILE) {
        multiply(products, scores, values, count);
        for (int64_t q = 0; q < n; q++) {
            float sums[TILE], *total = totals + q * stride + d;
            store_floats(sums, products[q][0]);
            store_floats(sums + VECTOR, products[q][1]);
            for (int64_t i = 0; i < TILE && d + i < width; i++) total[i] = total[i] * factors[q] + sums[i];
        }
    }
}

static void attend_prompt(const Prompt *prompt, PromptSpace *space) {
    int64_t width = prompt->width;
    for (int64_t q = 0; q < prompt->num_queries; q++) {
        space->largest[q] = -INFINITY, space->sums[q] = 0.0f;
        memset(prompt->totals + q * prompt->total_stride, 0, (size_t)width * sizeof(float));
    }
    for (int64_t first = 0; first < prompt->num_positions; first += PROMPT_BLOCK) {
        int64_t left = prompt->num_positions - first, count = left < PROMPT_BLOCK ? left : PROMPT_BLOCK;
        unpack_keys(space->keys, prompt->keys + first * width, width, count);
        unpack_values(space->values, prompt->values + first * width, width, count);
        for (int64_t query = 0; query < prompt->num_queries; query += QUERIES) {
            int64_t rest = prompt->num_queries - query, n = rest < QUERIES ? rest : QUERIES;
            float factors[QUERIES], *largest = space->largest + query, *sums = space->sums + query;
            copy_queries(space->queries, prompt, query);
            score_tiles(space->scores, space->queries, space->keys, width, count);
            for (int64_t q = 0; q < n; q++) {
                float *scores = space->scores + q * PROMPT_BLOCK, before = largest[q];
                largest[q] = largest_of(scores, count, before);
                factors[q] = largest[q] > before ? exponential_of(before - largest[q]) : 1.0f;
                sums[q] = sums[q] * factors[q] + weigh_block(scores, count, largest[q]);
            }
            add_tiles(prompt->totals + query * prompt->total_stride, prompt->total_stride, factors, space->scores,
                      space->values, width, count, n);
        }
    }
    for (int64_t q = 0; q < prompt->num_queries; q++)
        scale_row(prompt->totals + q * prompt->total_stride, 1.0f / space->sums[q], width);
}
