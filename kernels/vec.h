/* Vectors of the target's own width, in terms of `real` (float or double, chosen by DD_REAL_BITS).

   Every Cython kernel is written once in `real` and `vec` and compiled twice. The types are GCC's and
   clang's vector extensions: `a * b + c` on them becomes a fused multiply-add. What the extensions
   cannot say (zero, broadcast, a masked tail, exp, tanh) stands here. A vector type is declared with the
   alignment of its elements, so that any address may be loaded.

   64-byte vectors under AVX2 are split by the compiler into halves that spill: the width must be the
   instruction set's own. */
#ifndef DD2424FAST_VEC_H
#define DD2424FAST_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__GNUC__)
#error "dd2424fast needs GCC 9 or newer, or clang 11 or newer: its kernels are written with their vector extensions."
#endif

#if DD_REAL_BITS == 64
typedef double real;
typedef int64_t whole;
#else
typedef float real;
typedef int32_t whole;
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#include <immintrin.h>
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#include <immintrin.h>
#else
#define VECTOR_BYTES 16
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))
/* Return type of a Cython `cdef inline` function that must be inlined with its constant arguments. */
#define forced_inline_void __attribute__((always_inline)) void

typedef real vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
typedef whole ivec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
enum { LANES = VECTOR_BYTES / sizeof(real) };

ALWAYS_INLINE vec vec_zero(void) { return (vec){0}; }
/* x - 0 is x for every x, signed zero included; x + 0 is not. */
ALWAYS_INLINE vec vec_set(real x) { return x - (vec){0}; }
ALWAYS_INLINE vec vec_load(const real *p) { return *(const vec *)p; }
ALWAYS_INLINE void vec_prefetch(const real *p) { __builtin_prefetch(p, 0, 3); }
ALWAYS_INLINE void vec_store(real *p, vec v) { *(vec *)p = v; }

/* The first n lanes (0 <= n <= LANES); the others are zero, and their memory is not touched. */
ALWAYS_INLINE vec vec_load_part(const real *p, ptrdiff_t n) {
#if VECTOR_BYTES == 64 && DD_REAL_BITS == 64
    return (vec)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1u), p);
#elif VECTOR_BYTES == 64
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
#else
    vec v = {0};
    memcpy(&v, p, (size_t)n * sizeof(real));
    return v;
#endif
}

ALWAYS_INLINE void vec_store_part(real *p, vec v, ptrdiff_t n) {
#if VECTOR_BYTES == 64 && DD_REAL_BITS == 64
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1u), (__m512d)v);
#elif VECTOR_BYTES == 64
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
#else
    memcpy(p, &v, (size_t)n * sizeof(real));
#endif
}

/* As vec_load_part, with `fill` in the other lanes. */
ALWAYS_INLINE vec vec_load_filled(const real *p, ptrdiff_t n, vec fill) {
#if VECTOR_BYTES == 64 && DD_REAL_BITS == 64
    return (vec)_mm512_mask_loadu_pd((__m512d)fill, (__mmask8)((1u << n) - 1u), p);
#elif VECTOR_BYTES == 64
    return (vec)_mm512_mask_loadu_ps((__m512)fill, (__mmask16)((1u << n) - 1u), p);
#else
    memcpy(&fill, p, (size_t)n * sizeof(real));
    return fill;
#endif
}

#if defined(__clang__) /* has __builtin_shufflevector alone; GCC has it from 12 on, __builtin_shuffle always */
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
/* Lane i becomes lane i ^ d. */
#if VECTOR_BYTES / (DD_REAL_BITS / 8) == 16
#define SWAP(v, d) \
    SHUFFLE(v, v, 0 ^ d, 1 ^ d, 2 ^ d, 3 ^ d, 4 ^ d, 5 ^ d, 6 ^ d, 7 ^ d, 8 ^ d, 9 ^ d, 10 ^ d, 11 ^ d, 12 ^ d, 13 ^ d, 14 ^ d, 15 ^ d)
#elif VECTOR_BYTES / (DD_REAL_BITS / 8) == 8
#define SWAP(v, d) SHUFFLE(v, v, 0 ^ d, 1 ^ d, 2 ^ d, 3 ^ d, 4 ^ d, 5 ^ d, 6 ^ d, 7 ^ d)
#elif VECTOR_BYTES / (DD_REAL_BITS / 8) == 4
#define SWAP(v, d) SHUFFLE(v, v, 0 ^ d, 1 ^ d, 2 ^ d, 3 ^ d)
#else
#define SWAP(v, d) SHUFFLE(v, v, 0 ^ d, 1 ^ d)
#endif

/* Store past the caches, at an address that is a multiple of the vector's size: the line is not read first. For results too
   large to be found in a cache later. vec_stream_end() makes them visible to other threads. */
#if VECTOR_BYTES == 64 && DD_REAL_BITS == 64
ALWAYS_INLINE void vec_stream(real *p, vec v) { _mm512_stream_pd(p, (__m512d)v); }
#elif VECTOR_BYTES == 64
ALWAYS_INLINE void vec_stream(real *p, vec v) { _mm512_stream_ps(p, (__m512)v); }
#elif VECTOR_BYTES == 32 && DD_REAL_BITS == 64
ALWAYS_INLINE void vec_stream(real *p, vec v) { _mm256_stream_pd(p, (__m256d)v); }
#elif VECTOR_BYTES == 32
ALWAYS_INLINE void vec_stream(real *p, vec v) { _mm256_stream_ps(p, (__m256)v); }
#else
ALWAYS_INLINE void vec_stream(real *p, vec v) { vec_store(p, v); }
#endif
#if VECTOR_BYTES >= 32
ALWAYS_INLINE void vec_stream_end(void) { _mm_sfence(); }
#else
ALWAYS_INLINE void vec_stream_end(void) {}
#endif
/* Elements from p to the next such address. */
ALWAYS_INLINE ptrdiff_t vec_misaligned(const real *p) {
    return (ptrdiff_t)((0 - (uintptr_t)p) % VECTOR_BYTES / sizeof(real));
}

/* where(mask, a, b): mask is what a comparison of two vectors gives (all bits set, or none). */
ALWAYS_INLINE vec vec_where(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
/* Bytes of flags, one for each lane: the first n of them (1 <= n <= LANES), the others 0. */
ALWAYS_INLINE ivec vec_load_flags(const uint8_t *p, ptrdiff_t n) {
    typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
    bytes b = {0};
    if (n == LANES) b = *(const bytes *)p;
    else memcpy(&b, p, (size_t)n);
    return __builtin_convertvector(b, ivec);
}
/* 1 in the lanes whose byte has the bit, 0 in the others. */
ALWAYS_INLINE vec vec_flag(ivec flags, int bit) { return vec_where((flags & bit) != 0, vec_set(1), vec_zero()); }
/* The low byte of each of the first n lanes (1 <= n <= LANES). */
ALWAYS_INLINE void vec_store_bytes(uint8_t *p, ivec v, ptrdiff_t n) {
    typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
    bytes b = __builtin_convertvector(v, bytes);
    if (n == LANES) *(bytes *)p = b;
    else memcpy(p, &b, (size_t)n);
}
ALWAYS_INLINE ivec vec_whole(int number) { return (ivec){0} + (whole)number; }
/* v in the lanes that are marked with this number, 0 in the others. */
ALWAYS_INLINE vec vec_marked(ivec marks, int number, vec v) { return vec_where(marks == (whole)number, v, vec_zero()); }
/* Where v is larger than the largest so far, or is the first NaN, it takes its place, and its number is marked. */
ALWAYS_INLINE void vec_take_larger(vec *largest, ivec *marks, vec v, int number) {
#if VECTOR_BYTES == 64 && DD_REAL_BITS == 64
    __mmask8 known = _mm512_cmp_pd_mask((__m512d)*largest, (__m512d)*largest, _CMP_ORD_Q);
    __mmask8 larger = _mm512_mask_cmp_pd_mask(known, (__m512d)v, (__m512d)*largest, _CMP_NLE_UQ);
    *largest = (vec)_mm512_mask_mov_pd((__m512d)*largest, larger, (__m512d)v);
    *marks = (ivec)_mm512_mask_mov_epi64((__m512i)*marks, larger, (__m512i)vec_whole(number));
#elif VECTOR_BYTES == 64
    __mmask16 known = _mm512_cmp_ps_mask((__m512)*largest, (__m512)*largest, _CMP_ORD_Q);
    __mmask16 larger = _mm512_mask_cmp_ps_mask(known, (__m512)v, (__m512)*largest, _CMP_NLE_UQ);
    *largest = (vec)_mm512_mask_mov_ps((__m512)*largest, larger, (__m512)v);
    *marks = (ivec)_mm512_mask_mov_epi32((__m512i)*marks, larger, (__m512i)vec_whole(number));
#else
    ivec larger = ~(v <= *largest) & (*largest == *largest);
    *largest = vec_where(larger, v, *largest);
    *marks = (larger & (whole)number) | (~larger & *marks);
#endif
}
/* NaN in `a` stays: the comparison is false for it. x86 has just that in one instruction. */
#if VECTOR_BYTES == 64 && DD_REAL_BITS == 64
ALWAYS_INLINE vec vec_max(vec a, vec b) { return (vec)_mm512_max_pd((__m512d)b, (__m512d)a); }
ALWAYS_INLINE vec vec_min(vec a, vec b) { return (vec)_mm512_min_pd((__m512d)b, (__m512d)a); }
#elif VECTOR_BYTES == 64
ALWAYS_INLINE vec vec_max(vec a, vec b) { return (vec)_mm512_max_ps((__m512)b, (__m512)a); }
ALWAYS_INLINE vec vec_min(vec a, vec b) { return (vec)_mm512_min_ps((__m512)b, (__m512)a); }
#elif VECTOR_BYTES == 32 && DD_REAL_BITS == 64
ALWAYS_INLINE vec vec_max(vec a, vec b) { return (vec)_mm256_max_pd((__m256d)b, (__m256d)a); }
ALWAYS_INLINE vec vec_min(vec a, vec b) { return (vec)_mm256_min_pd((__m256d)b, (__m256d)a); }
#elif VECTOR_BYTES == 32
ALWAYS_INLINE vec vec_max(vec a, vec b) { return (vec)_mm256_max_ps((__m256)b, (__m256)a); }
ALWAYS_INLINE vec vec_min(vec a, vec b) { return (vec)_mm256_min_ps((__m256)b, (__m256)a); }
#else
ALWAYS_INLINE vec vec_max(vec a, vec b) { return vec_where(a < b, b, a); }
ALWAYS_INLINE vec vec_min(vec a, vec b) { return vec_where(a > b, b, a); }
#endif
ALWAYS_INLINE vec vec_abs(vec a) { return (vec)((ivec)a & ~(ivec)vec_set(-(real)0)); }

/* 1 in this lane, if there is one, and 0 elsewhere. */
ALWAYS_INLINE vec vec_one_hot(ptrdiff_t lane) {
    vec v = {0};
    if (lane >= 0 && lane < LANES) v[lane] = 1;
    return v;
}

ALWAYS_INLINE real vec_first(vec v) { return v[0]; }

/* In every lane the sum of all, halves added to halves: one fixed order for every instruction set of the same width. */
ALWAYS_INLINE vec vec_sum_all(vec v) {
#if VECTOR_BYTES / (DD_REAL_BITS / 8) > 8
    v += SWAP(v, 8);
#endif
#if VECTOR_BYTES / (DD_REAL_BITS / 8) > 4
    v += SWAP(v, 4);
#endif
#if VECTOR_BYTES / (DD_REAL_BITS / 8) > 2
    v += SWAP(v, 2);
#endif
    return v + SWAP(v, 1);
}
ALWAYS_INLINE real vec_sum(vec v) { return vec_first(vec_sum_all(v)); }

/* In every lane the largest of all; NaN may be lost. */
ALWAYS_INLINE vec vec_max_all(vec v) {
#if VECTOR_BYTES / (DD_REAL_BITS / 8) > 8
    v = vec_max(v, SWAP(v, 8));
#endif
#if VECTOR_BYTES / (DD_REAL_BITS / 8) > 4
    v = vec_max(v, SWAP(v, 4));
#endif
#if VECTOR_BYTES / (DD_REAL_BITS / 8) > 2
    v = vec_max(v, SWAP(v, 2));
#endif
    return vec_max(v, SWAP(v, 1));
}

/* c[0] x^(n-1) + ... + c[n-1] by Horner's rule. */
ALWAYS_INLINE vec vec_polynomial(vec x, const real *c, const int n) {
    vec p = vec_set(c[0]);
#pragma GCC unroll 32
    for (int i = 1; i < n; i++) p = p * x + c[i];
    return p;
}
#define POLYNOMIAL(x, ...) \
    vec_polynomial(x, (const real[]){__VA_ARGS__}, (int)(sizeof((const real[]){__VA_ARGS__}) / sizeof(real)))

/* The coefficients below are minimax fits (Remez's exchange), each within a fifth of an ulp of its function. */

/* Cody and Waite's reduction x = n ln 2 + r, |r| <= ln(2) / 2; returns e^r - 1. */
ALWAYS_INLINE vec vec_exp_reduced(vec x, vec *n) {
#if DD_REAL_BITS == 64
    const real log2e = 1.4426950408889634, magic = 6755399441055744.0; /* 1.5 * 2^52 */
    const real ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
#else
    const real log2e = 1.44269504f, magic = 12582912.0f; /* 1.5 * 2^23 */
    const real ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
#endif
    *n = (x * log2e + magic) - magic; /* adding 1.5 * 2^fraction rounds to the nearest integer */
    vec r = x - *n * ln2_high;
    r = r - *n * ln2_low;
#if DD_REAL_BITS == 64
    vec p = POLYNOMIAL(r, 2.50681697141563115e-8, 2.76200461275991787e-7, 2.7557355502295154e-6, 2.48015213975493393e-5,
                       1.98412697846731305e-4, 1.38888889171375924e-3, 8.33333333335619713e-3, 4.166666666662431e-2,
                       1.66666666666666439e-1, 0.500000000000000102);
#else
    vec p = POLYNOMIAL(r, 1.390129679e-3f, 8.363145989e-3f, 4.16668533e-2f, 1.666657729e-1f, 4.999999955e-1f);
#endif
    return r + r * r * p;
}

/* x 2^n for a whole number n. */
ALWAYS_INLINE vec vec_scale(vec x, vec n) {
#if VECTOR_BYTES == 64 && DD_REAL_BITS == 64
    return (vec)_mm512_scalef_pd((__m512d)x, (__m512d)n);
#elif VECTOR_BYTES == 64
    return (vec)_mm512_scalef_ps((__m512)x, (__m512)n);
#else
    /* As 2^(n>>1) * 2^(n - (n>>1)): 2^128 (2^1024) alone would overflow the exponent field. */
#if DD_REAL_BITS == 64
    const real magic = 6755399441055744.0;
    enum { bias = 1023, fraction = 52 };
#else
    const real magic = 12582912.0f;
    enum { bias = 127, fraction = 23 };
#endif
    ivec m = (ivec)(n + magic) - (ivec)vec_set(magic), half = m >> 1;
    return x * (vec)((half + bias) << fraction) * (vec)((m - half + bias) << fraction);
#endif
}

/* a / b, at most 2 ulp. A division keeps the divider busy for 16 cycles: under AVX-512 a float's quotient is formed from
   the reciprocal's first 14 bits and one Newton step instead. At b = 0, infinity or NaN the step is 0 times infinity, and
   the first guess is right as it stands. */
ALWAYS_INLINE vec vec_divide(vec a, vec b) {
#if VECTOR_BYTES == 64 && DD_REAL_BITS == 32
    vec r = (vec)_mm512_rcp14_ps((__m512)b), error = 1 - b * r;
    return a * vec_where(error == error, r + r * error, r);
#else
    return a / b;
#endif
}

/* exp, at most 1.1 ulp; 0 where the result would be subnormal (x86 takes 20 times as long for those), infinity above,
   NaN for NaN. */
ALWAYS_INLINE vec vec_exp(vec x) {
#if DD_REAL_BITS == 64
    const real lowest = -708.39641853226408, highest = 710; /* e^710 overflows by itself */
#else
    const real lowest = -87.3365f, highest = 89;
#endif
    vec n, q = vec_exp_reduced(vec_min(vec_max(x, vec_set(lowest)), vec_set(highest)), &n);
    return vec_where(x < lowest, vec_zero(), vec_scale(q + (real)1, n));
}

/* log by x = m 2^e with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m - 1) / (m + 1)). At most 2 ulp.
   Infinity and NaN stay; -infinity at 0 and below, subnormal x among them. */
ALWAYS_INLINE vec vec_log(vec x) {
#if DD_REAL_BITS == 64
    const whole bias_bits = 0x3fe6a09e667f3bcdLL; /* sqrt(1/2) */
    const real ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
    const real smallest = 2.2250738585072014e-308;
    enum { fraction = 52 };
#else
    const whole bias_bits = 0x3f3504f3;
    const real ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    const real smallest = 1.17549435e-38f;
    enum { fraction = 23 };
#endif
    ivec e = ((ivec)x - bias_bits) >> fraction;
    vec m = (vec)((ivec)x - (e << fraction));
    vec er = __builtin_convertvector(e, vec);
    vec f = m - (real)1;
    vec s = f / (m + (real)1);
    vec s2 = s * s;
#if DD_REAL_BITS == 64
    vec p = POLYNOMIAL(s2, 1.46170136644215405e-1, 1.53316728336317371e-1, 1.81828907052098314e-1, 2.22222111112395073e-1,
                       2.8571428626133678e-1, 3.99999999998991194e-1, 6.6666666666666697e-1);
#else
    vec p = POLYNOMIAL(s2, 2.958062194e-1f, 3.998876173e-1f, 6.66666851e-1f);
#endif
    /* 2 atanh(s) = 2 s + s^3 p, and 2 s = f - s f */
    vec y = er * ln2_high + (f - (s * f - (s * s2 * p + er * ln2_low)));
    y = vec_where(x < smallest, vec_set((real)-__builtin_inf()), y);
    return vec_where(x < (real)__builtin_inf(), y, x);
}

/* log(1 + x) for 0 <= x <= 1 as 2 atanh(x / (2 + x)); at most 2 ulp. */
ALWAYS_INLINE vec vec_log1p(vec x) {
    vec s = x / (x + (real)2), s2 = s * s;
#if DD_REAL_BITS == 64
    vec p = POLYNOMIAL(s2, 1.56397978318333654e-1, 7.4870561440323593e-2, 1.08463712586216978e-1, 1.17341242619303263e-1,
                       1.33351907669977553e-1, 1.53845433762816755e-1, 1.8181819915332515e-1, 2.22222221979425362e-1,
                       2.85714285716026277e-1, 3.99999999999995141e-1, 6.66666666666666669e-1);
#else
    vec p = POLYNOMIAL(s2, 2.68615546e-1f, 2.823496822e-1f, 4.000762818e-1f, 6.666663993e-1f);
#endif
    return s + s + s * s2 * p;
}

/* tanh |x| = u / (u + 2) with u = e^(2|x|) - 1 = 2^n (e^r - 1) + (2^n - 1), which loses nothing near 0. At most 3 ulp. */
ALWAYS_INLINE vec vec_tanh(vec x) {
    const real saturated = 40; /* tanh 20 rounds to 1 */
    vec a = vec_abs(x), n;
    vec q = vec_exp_reduced(vec_min(a + a, vec_set(saturated)), &n);
    vec power = vec_scale(vec_set(1), n);
    vec u = power * q + (power - (real)1);
    ivec sign = (ivec)x & (ivec)vec_set(-(real)0);
    return (vec)((ivec)vec_divide(u, u + (real)2) | sign);
}

/* At most 3 ulp where e^-x is finite, 0 below. */
ALWAYS_INLINE vec vec_sigmoid(vec x) { return vec_divide(vec_set(1), (real)1 + vec_exp(-x)); }

/* The standard normal distribution: its cumulative function (1 + erf(x / sqrt 2)) / 2, and its density.
   For x <= 0 it is the density times Mills' ratio, and (1 + |x|) times that is a polynomial of t = (|x| - k) / (|x| + k)
   up to where the result underflows (Shepherd and Laframboise 1981, for erfc): relative accuracy in the tail too,
   (5 + x^2) ulp, from the rounding of x^2. */
ALWAYS_INLINE vec vec_normal(vec x, vec *density) {
#if DD_REAL_BITS == 64
    const real farthest = 38.6, k = 5;
#else
    const real farthest = 14.5f, k = 4;
#endif
    vec a = vec_min(vec_abs(x), vec_set(farthest));
    vec g = vec_exp(a * a * (real)-0.5);
    vec t = vec_divide(a - k, a + k);
#if DD_REAL_BITS == 64
    vec p = POLYNOMIAL(t, 2.0875112380444227e-9, 1.3271244580938049e-9, -2.62488800687930565e-8, -2.07954093813283849e-8,
                       1.91512732861942552e-7, 1.21409295428705131e-7, -1.3047139987267332e-6, -6.59201419901017367e-8,
                       9.05890777151465198e-6, -9.89797102595168437e-6, -5.36074094532393479e-5, 1.82334642796005672e-4,
                       7.79158302472334738e-6, -1.67607242584243819e-3, 6.52200066757898982e-3, -1.51704153948353671e-2,
                       2.45369632437882633e-2, -2.64010429666783678e-2, 1.00023523852242389e-2, 3.10303684259706359e-2,
                       -9.15522818340089851e-2, 4.61515829850037752e-1);
#else
    vec p = POLYNOMIAL(t, 8.963114775e-5f, 7.244777131e-4f, -4.084585437e-4f, -5.050466384e-3f, 1.796521861e-2f,
                       -3.218534183e-2f, 2.859756509e-2f, 1.399869092e-2f, -9.670339197e-2f, 4.72053217e-1f);
#endif
    *density = g * (real)0.398942280401432678;
    vec tail = vec_divide(g * p, a + (real)1);
    return vec_where(x < (real)0, tail, (real)1 - tail);
}

/* NaN passes: every comparison with it is false, and the last branch returns x itself. So does -0. */
ALWAYS_INLINE vec vec_relu(vec x) { return vec_max(x, vec_zero()); }
ALWAYS_INLINE vec vec_leaky_relu(vec x) { return vec_where(x < (real)0, x * (real)0.01, x); }
/* Derivatives from the output y, whose sign is the input's; at 0 the derivative is the left one, as PyTorch has it. */
ALWAYS_INLINE vec vec_relu_slope(vec y) { return vec_where(y > (real)0, vec_set(1), vec_zero()); }
ALWAYS_INLINE vec vec_leaky_relu_slope(vec y) { return vec_where(y > (real)0, vec_set(1), vec_set((real)0.01)); }

/* Transpose LANES vectors in place: log2(LANES) rounds, each interleaving the first half with the second. */
#if VECTOR_BYTES / (DD_REAL_BITS / 8) == 16
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define ZIP_ROUNDS 4
#elif VECTOR_BYTES / (DD_REAL_BITS / 8) == 8
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define ZIP_ROUNDS 3
#elif VECTOR_BYTES / (DD_REAL_BITS / 8) == 4
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#define ZIP_ROUNDS 2
#else
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 2)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 1, 3)
#define ZIP_ROUNDS 1
#endif

/* to (LANES columns of row stride to_row) = transpose of from (LANES rows of row stride from_row) */
ALWAYS_INLINE void vec_transpose(const real *from, ptrdiff_t from_row, real *to, ptrdiff_t to_row) {
    vec t[LANES], u[LANES];
    for (int i = 0; i < LANES; i++) t[i] = vec_load(from + i * from_row);
    for (int round = 0; round < ZIP_ROUNDS; round++) {
        for (int i = 0; i < LANES / 2; i++) {
            u[2 * i] = ZIP_LOW(t[i], t[i + LANES / 2]);
            u[2 * i + 1] = ZIP_HIGH(t[i], t[i + LANES / 2]);
        }
        for (int i = 0; i < LANES; i++) t[i] = u[i];
    }
    for (int i = 0; i < LANES; i++) vec_store(to + i * to_row, t[i]);
}

#endif
