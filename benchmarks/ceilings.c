/* What this processor can do at most: bytes read per second, and products of bytes per second (VNNI). */
#include <immintrin.h>
#include <stdint.h>
#include <time.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2")))

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Four sums at once over 32-byte words; a part is a multiple of 128 bytes. */
__attribute__((target("avx2"))) static uint64_t read_part(const uint8_t *bytes, int64_t size) {
    __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t i = 0; i + 128 <= size; i += 128)
        for (int k = 0; k < 4; k++)
            sums[k] = _mm256_xor_si256(sums[k], _mm256_loadu_si256((const __m256i *)(bytes + i + 32 * k)));
    __m256i all = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
    return (uint64_t)_mm256_extract_epi64(all, 0) ^ (uint64_t)_mm256_extract_epi64(all, 2);
}

/* Seconds to read `size` bytes once, each thread one contiguous part. */
double read_seconds(const uint8_t *bytes, int64_t size, int threads) {
    uint64_t sum = 0;
    int64_t part = size / threads;
    double start = now();
#pragma omp parallel for num_threads(threads) reduction(^ : sum)
    for (int i = 0; i < threads; i++) sum ^= read_part(bytes + i * part, part);
    double seconds = now() - start;
    return sum == 42 ? seconds + 1e-12 : seconds; /* the sum must be used, or nothing is read */
}

TARGET static int32_t multiply_bytes(int64_t rounds) {
    __m512i sums[12], u = _mm512_set1_epi8(3), s = _mm512_set1_epi8(5), all = _mm512_setzero_si512();
    for (int i = 0; i < 12; i++) sums[i] = _mm512_set1_epi32(i);
    for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sums[i]) : "v"(u), "v"(s));
    }
    for (int i = 0; i < 12; i++) all = _mm512_add_epi32(all, sums[i]);
    return _mm512_reduce_add_epi32(all);
}

/* Multiplications and additions per second, all threads together, or 0 without VNNI. */
double int8_operations_per_second(int64_t rounds, int threads) {
    int32_t sum = 0;
    if (!__builtin_cpu_supports("avx512vnni")) return 0;
    double start = now();
#pragma omp parallel for num_threads(threads) reduction(+ : sum)
    for (int i = 0; i < threads; i++) sum += multiply_bytes(rounds);
    double seconds = now() - start;
    return (double)rounds * 12 * 128 * threads / seconds + (sum == 42);
}
