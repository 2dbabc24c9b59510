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

/* Sum of the lanes, halves added to halves: one fixed order for every instruction set of the same width. */
ALWAYS_INLINE real vec_sum(vec v) {
    real lane[LANES];
    vec_store(lane, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

/* where(mask, a, b): mask is what a comparison of two vectors gives (all bits set, or none). */
ALWAYS_INLINE vec vec_where(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
/* NaN in `a` stays: the comparison is false for it. */
ALWAYS_INLINE vec vec_max(vec a, vec b) { return vec_where(a < b, b, a); }
ALWAYS_INLINE vec vec_min(vec a, vec b) { return vec_where(a > b, b, a); }
ALWAYS_INLINE vec vec_abs(vec a) { return (vec)((ivec)a & ~(ivec)vec_set(-(real)0)); }

/* exp by Cody and Waite's reduction x = n ln 2 + r, |r| <= ln(2) / 2, and a Taylor polynomial of r
   (degree 7 in float, 13 in double: truncation below half an ulp). At most 2 ulp where the result is normal;
   0 below, infinity above, NaN for NaN. */
ALWAYS_INLINE vec vec_exp(vec x) {
#if DD_REAL_BITS == 64
    const real log2e = 1.4426950408889634, magic = 6755399441055744.0; /* 1.5 * 2^52 */
    const real ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
    const real lowest = -708.39641853226408, highest = 709.78271289338397;
    enum { bias = 1023, fraction = 52 };
#else
    const real log2e = 1.44269504f, magic = 12582912.0f; /* 1.5 * 2^23 */
    const real ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    const real lowest = -87.3365448f, highest = 88.7228394f;
    enum { bias = 127, fraction = 23 };
#endif
    vec z = vec_min(vec_max(x, vec_set(lowest)), vec_set(highest));
    /* Adding 1.5 * 2^fraction rounds to the nearest integer and leaves it in the low bits. */
    vec shifted = z * log2e + magic;
    ivec n = (ivec)shifted - (ivec)vec_set(magic);
    vec nr = shifted - magic;
    vec r = z - nr * ln2_high;
    r = r - nr * ln2_low;
#if DD_REAL_BITS == 64
    vec p = vec_set(1.6059043836821613e-10);
    p = p * r + 2.08767569878681e-09;
    p = p * r + 2.505210838544172e-08;
    p = p * r + 2.755731922398589e-07;
    p = p * r + 2.7557319223985893e-06;
    p = p * r + 2.48015873015873e-05;
    p = p * r + 0.0001984126984126984;
    p = p * r + 0.001388888888888889;
    p = p * r + 0.008333333333333333;
    p = p * r + 0.041666666666666664;
    p = p * r + 0.16666666666666666;
#else
    vec p = vec_set(1.98412698e-4f);
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
#endif
    p = p * r + (real)0.5;
    p = p * r + (real)1;
    p = p * r + (real)1;
    /* 2^n as 2^(n>>1) * 2^(n - (n>>1)): n = 128 (1024) alone would overflow the exponent field. */
    ivec half = n >> 1;
    vec y = p * (vec)((half + bias) << fraction) * (vec)((n - half + bias) << fraction);
    y = vec_where(x < lowest, vec_zero(), y);
    y = vec_where(x > highest, vec_set((real)__builtin_inf()), y);
    return vec_where(x != x, x, y);
}

/* log for positive normal x: x = m 2^e with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m - 1) / (m + 1)). At most 2 ulp
   away from 1. */
ALWAYS_INLINE vec vec_log(vec x) {
#if DD_REAL_BITS == 64
    const whole bias_bits = 0x3fe6a09e667f3bcdLL; /* sqrt(1/2) */
    const real ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
    enum { fraction = 52 };
#else
    const whole bias_bits = 0x3f3504f3;
    const real ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    enum { fraction = 23 };
#endif
    ivec e = ((ivec)x - bias_bits) >> fraction;
    vec m = (vec)((ivec)x - (e << fraction));
    vec er = __builtin_convertvector(e, vec);
    vec f = m - (real)1;
    vec s = f / (m + (real)1);
    vec s2 = s * s;
#if DD_REAL_BITS == 64
    vec p = vec_set(2.0 / 21);
    p = p * s2 + 2.0 / 19;
    p = p * s2 + 2.0 / 17;
    p = p * s2 + 2.0 / 15;
    p = p * s2 + 2.0 / 13;
    p = p * s2 + 2.0 / 11;
    p = p * s2 + 2.0 / 9;
    p = p * s2 + 2.0 / 7;
#else
    vec p = vec_set(2.0f / 9);
    p = p * s2 + 2.0f / 7;
#endif
    p = p * s2 + (real)(2.0 / 5);
    p = p * s2 + (real)(2.0 / 3);
    /* 2 atanh(s) = 2 s + s^3 p, and 2 s = f - s f */
    return er * ln2_high + (f - (s * f - (s * s2 * p + er * ln2_low)));
}

/* tanh: an odd Taylor-like quotient near 0 would lose nothing, but 1 - 2 / (exp(2|x|) + 1) cancels there.
   Below 0.625 the odd polynomial x + x^3 p(x^2) (Cephes, Moshier 1992) is used, above it the quotient. */
ALWAYS_INLINE vec vec_tanh(vec x) {
    vec a = vec_abs(x), s = x * x;
    vec big = (real)1 - (real)2 / (vec_exp(a + a) + (real)1);
#if DD_REAL_BITS == 64
    vec p = ((vec_set(-9.64399179425052238628e-1) * s - 9.92877231001918586564e1) * s - 1.61468768441708447952e3);
    vec q = (((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3);
    vec small = x + x * s * (p / q);
#else
    vec p = vec_set(-5.70498872745e-3f);
    p = p * s + 2.06390887954e-2f;
    p = p * s - 5.37397155531e-2f;
    p = p * s + 1.33314422036e-1f;
    p = p * s - 3.33332819422e-1f;
    vec small = x + x * s * p;
#endif
    ivec sign = (ivec)x & (ivec)vec_set(-(real)0);
    big = (vec)((ivec)big | sign);
    vec y = vec_where(a < (real)0.625, small, big);
    return vec_where(x != x, x, y);
}

ALWAYS_INLINE vec vec_sigmoid(vec x) { return (real)1 / ((real)1 + vec_exp(-x)); }

/* NaN passes: every comparison with it is false, and the last branch returns x itself. */
ALWAYS_INLINE vec vec_relu(vec x) { return vec_where(x < (real)0, vec_zero(), x); }
ALWAYS_INLINE vec vec_leaky_relu(vec x) { return vec_where(x < (real)0, x * (real)0.01, x); }
/* Derivatives from the output y, whose sign is the input's; at 0 the derivative is the left one, as PyTorch has it. */
ALWAYS_INLINE vec vec_relu_slope(vec y) { return vec_where(y > (real)0, vec_set(1), vec_zero()); }
ALWAYS_INLINE vec vec_leaky_relu_slope(vec y) { return vec_where(y > (real)0, vec_set(1), vec_set((real)0.01)); }

/* Transpose LANES vectors in place: log2(LANES) rounds, each interleaving the first half with the second. */
#if defined(__clang__) /* has __builtin_shufflevector alone; GCC has it from 12 on, __builtin_shuffle always */
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
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
