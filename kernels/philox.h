/* Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw 2011), on vectors; what is made of its words.

   A 128-bit counter holding the number of the block is enciphered by a 64-bit key into four 32-bit words; word i of
   the stream is word i % 4 of block i / 4. Any word can be computed by itself: nothing is stored, and nothing depends
   on threads.

   A round multiplies 32 bits by 32 into 64. So each 32-bit word lives in the low half of a 64-bit lane, as the
   multiplier wants it, and the upper halves are left to hold anything: six instructions a round under AVX-512, eight
   elsewhere. */
#ifndef DD2424FAST_PHILOX_H
#define DD2424FAST_PHILOX_H

#include "vec.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef uint64_t wide __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
/* As many 32-bit words as a vec has lanes; and the same in unsigned lanes of real's own width. */
typedef uint32_t narrow __attribute__((vector_size(4 * VECTOR_BYTES / (DD_REAL_BITS / 8)), aligned(4), may_alias));
#if DD_REAL_BITS == 64
typedef wide word;
#else
typedef narrow word;
#endif

#if DD_REAL_BITS == 64
#define REAL_SQRT __builtin_sqrt
#else
#define REAL_SQRT __builtin_sqrtf
#endif

enum { WIDE = VECTOR_BYTES / 8, BATCH = 64 }; /* 64-bit lanes of a vector; words made at a time */

ALWAYS_INLINE wide low_product(wide x, uint32_t m) {
#if VECTOR_BYTES == 64
    return (wide)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(m));
#elif VECTOR_BYTES == 32 && defined(__AVX2__)
    return (wide)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(m));
#elif VECTOR_BYTES == 16 && defined(__SSE2__)
    return (wide)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(m));
#elif defined(__aarch64__)
    return (wide)vmull_u32(vmovn_u64((uint64x2_t)x), vdup_n_u32(m));
#else
    return (x & 0xffffffffu) * (uint64_t)m;
#endif
}

/* The two key words of each round. */
ALWAYS_INLINE void philox_keys(uint64_t key, uint64_t *keys) {
    uint32_t key_0 = (uint32_t)key, key_1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        keys[2 * round] = key_0;
        keys[2 * round + 1] = key_1;
        key_0 += 0x9E3779B9u; /* the golden ratio and sqrt(3) - 1, as the authors chose */
        key_1 += 0xBB67AE85u;
    }
}

/* 2 WIDE blocks from number `block` on: two vectors hide the multiplier's latency. */
ALWAYS_INLINE void philox_blocks(const uint64_t *keys, uint64_t block, uint32_t *words) {
    static const uint64_t count[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    wide x[2][4];
    for (int v = 0; v < 2; v++) {
        x[v][0] = *(const wide *)count + (block + (uint64_t)(v * WIDE));
        x[v][1] = x[v][0] >> 32;
        x[v][2] = x[v][3] = (wide){0};
    }
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++)
        for (int v = 0; v < 2; v++) {
            wide p = low_product(x[v][0], 0xD2511F53u), q = low_product(x[v][2], 0xCD9E8D57u);
            x[v][0] = (q >> 32) ^ x[v][1] ^ keys[2 * round];
            x[v][2] = (p >> 32) ^ x[v][3] ^ keys[2 * round + 1];
            x[v][1] = q;
            x[v][3] = p;
        }
    for (int v = 0; v < 2; v++) {
        /* Words 0, 1 of a block side by side in a lane, and 2, 3; then the two kinds of lanes in turn. */
        wide first = (x[v][0] & 0xffffffffu) | x[v][1] << 32, second = (x[v][2] & 0xffffffffu) | x[v][3] << 32;
        wide *to = (wide *)(words + v * 4 * WIDE);
#if defined(__clang__)
#define WIDE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define WIDE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (wide){__VA_ARGS__})
#endif
#if VECTOR_BYTES == 64
        to[0] = WIDE_SHUFFLE(first, second, 0, 8, 1, 9, 2, 10, 3, 11);
        to[1] = WIDE_SHUFFLE(first, second, 4, 12, 5, 13, 6, 14, 7, 15);
#elif VECTOR_BYTES == 32
        to[0] = WIDE_SHUFFLE(first, second, 0, 4, 1, 5);
        to[1] = WIDE_SHUFFLE(first, second, 2, 6, 3, 7);
#else
        to[0] = WIDE_SHUFFLE(first, second, 0, 2);
        to[1] = WIDE_SHUFFLE(first, second, 1, 3);
#endif
    }
}

/* BATCH words of the stream, from word `start` on, a multiple of BATCH. */
ALWAYS_INLINE void philox_batch(const uint64_t *keys, uint64_t start, uint32_t *words) {
    for (int i = 0; i < BATCH; i += 8 * WIDE) philox_blocks(keys, start / 4 + (uint64_t)(i / 4), words + i);
}

ALWAYS_INLINE word load_words(const uint32_t *words) {
#if DD_REAL_BITS == 64
    return __builtin_convertvector(*(const narrow *)words, wide);
#else
    return *(const narrow *)words;
#endif
}

/* `scale` where the word is at least `threshold`, 0 where it is below. */
ALWAYS_INLINE vec kept(const uint32_t *words, uint32_t threshold, real scale) {
    return (vec)((ivec)(load_words(words) >= (word){0} + threshold) & (ivec)vec_set(scale));
}

/* The value of each word, rounded to real. */
ALWAYS_INLINE vec value(word w) {
#if DD_REAL_BITS == 64
    const double two_52 = 4503599627370496.0; /* its low bits count units */
    return (vec)(w | (wide)vec_set(two_52)) - two_52;
#else
    return __builtin_convertvector((ivec)(w >> 16), vec) * 65536.0f + __builtin_convertvector((ivec)(w & 0xffffu), vec);
#endif
}

/* Uniform in [0, 1): the word over 2^32, cut to float's 24 bits so that it never rounds to 1. */
ALWAYS_INLINE vec uniform(const uint32_t *words) {
#if DD_REAL_BITS == 64
    return value(load_words(words)) * 0x1p-32;
#else
    return __builtin_convertvector((ivec)(load_words(words) >> 8), vec) * 0x1p-24f;
#endif
}

/* -2 log u of u = (w + 1) / 2^32. */
ALWAYS_INLINE vec minus_two_log(word w) {
    vec y = vec_log(value(w + 1) * (real)0x1p-32) * (real)-2;
#if DD_REAL_BITS == 32
    /* Near 1, u has lost in float what v = 1 - u still has: log(1 - v) = -2 atanh(v / (2 - v)). */
    vec v = value(~w) * 0x1p-32f, s = v / (2.0f - v), s2 = s * s;
    vec near_1 = 4.0f * s * (1.0f + s2 * (1.0f / 3 + s2 * (1.0f / 5 + s2 * (1.0f / 7))));
    y = vec_where(v < 0.25f, near_1, y);
#endif
    return y;
}

/* sin and cos of the angle 2 pi w / 2^32: the nearest quarter turn, and nested Taylor polynomials of the rest, which is
   at most pi / 4. */
ALWAYS_INLINE void sin_cos(word w, vec *sine, vec *cosine) {
    word quarter = (w + (word){0} + (1u << 29)) >> 30;
    ivec rest = (ivec)(w - (quarter << 30));
#if DD_REAL_BITS == 64
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
    vec t = ((vec)(rest + (ivec)vec_set(magic)) - magic) * (6.283185307179586 * 0x1p-32);
    enum { degree = 16 };
#else
    vec t = __builtin_convertvector(rest, vec) * (6.283185307179586f * 0x1p-32f);
    enum { degree = 10 };
#endif
    vec square = t * t, s = vec_set(1), c = vec_set(1);
#pragma GCC unroll 8
    for (int k = degree; k > 0; k -= 2) {
        s = (real)1 - square * s * ((real)1 / (real)(k * (k + 1)));
        c = (real)1 - square * c * ((real)1 / (real)(k * (k - 1)));
    }
    s = s * t;
    ivec odd = (ivec)((quarter & 1) != 0);
    /* quarter 0: (s, c), 1: (c, -s), 2: (-s, -c), 3: (-c, s) */
    ivec minus = (ivec)vec_set(-(real)0);
    ivec sine_minus = (ivec)((quarter & 2) != 0) & minus, cosine_minus = (ivec)(((quarter + 1) & 2) != 0) & minus;
    *sine = (vec)((ivec)vec_where(odd, c, s) ^ sine_minus);
    *cosine = (vec)((ivec)vec_where(odd, s, c) ^ cosine_minus);
}

/* BATCH normal numbers from BATCH words (Box and Muller 1958): numbers i and i + 32 are r cos a and r sin a, the radius
   from word i, the angle from word i + 32. */
ALWAYS_INLINE void box_muller(const uint32_t *words, real *z) {
    real radius[BATCH / 2];
    for (int i = 0; i < BATCH / 2; i += LANES) vec_store(radius + i, minus_two_log(load_words(words + i)));
    for (int i = 0; i < BATCH / 2; i++) radius[i] = (real)REAL_SQRT(radius[i]);
    for (int i = 0; i < BATCH / 2; i += LANES) {
        vec sine, cosine, r = vec_load(radius + i);
        sin_cos(load_words(words + BATCH / 2 + i), &sine, &cosine);
        vec_store(z + i, r * cosine);
        vec_store(z + BATCH / 2 + i, r * sine);
    }
}

#endif
