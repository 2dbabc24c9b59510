/* The CPU's matrix unit (Intel AMX), made to multiply float32 matrices.

   The unit multiplies bfloat16 numbers and adds in float32: 16 x 16 sums of 32 products each in 16 cycles, 16 times what the
   vectors do. A float32 number has 24 significant bits, a bfloat16 one 8, over the same range of exponents; so every number is the
   exact sum of three parts,

       x = high + middle + low,    middle <= 2^-8 high,  low <= 2^-16 high,

   and six of the nine products of parts give x y to within 2^-23 |x y|; the three left out are below the rounding of float32
   (Henry, Tang and Heinecke 2019, arXiv:1904.06376, section III).

   What differs from the vectors: an infinity becomes NaN (its middle part is infinity - infinity), as does a number within 0.4 % of
   the largest one; parts and sums below 1.2e-38 count as zero, so that numbers below 1e-33 lose low bits.

   Compiled where the instruction set has it, used where the operating system lets the process. */
#ifndef DD2424FAST_MATRIX_UNIT_H
#define DD2424FAST_MATRIX_UNIT_H

#include "vec.h"

#if DD_REAL_BITS == 32 && defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512F__)
#define MATRIX_UNIT 1
#else
#define MATRIX_UNIT 0
#endif

/* Numbers in a part of a tile; a tile of A is 16 rows of 32 k, one of B 32 k of 16 columns, each in three parts. */
enum { UNIT_ROWS = 16, UNIT_K = 32, PART = UNIT_ROWS * UNIT_K, PARTS = 3 * PART };
typedef uint16_t bfloat;

ALWAYS_INLINE void unit_prefetch_write(const real *p) { __builtin_prefetch(p, 1, 3); }

#if MATRIX_UNIT

typedef uint32_t bits __attribute__((vector_size(64), may_alias)); /* rounding NaN may carry into the sign */

/* Two vectors of numbers as three of pairs of parts: lane i holds x[i] below y[i]. Parts are rounded to nearest, halves away
   from zero; NaN of any payload stays one in the last part, which is cut, not rounded. */
ALWAYS_INLINE void unit_split_into(vec x, vec y, bfloat *to, ptrdiff_t next) {
    const bits half = (bits){0} + 0x8000, upper = (bits){0} + 0xffff0000;
    for (int part = 0; part < 3; part++) {
        bits a = (bits)x, b = (bits)y;
        if (part < 2) a += half, b += half;
        bits a_part = a & upper, b_part = b & upper;
        *(bits *)(to + part * next) = (bits)_mm512_srli_epi32((__m512i)a, 16) | b_part;
        x = x - (vec)a_part;
        y = y - (vec)b_part;
    }
}
ALWAYS_INLINE void unit_split(vec x, vec y, bfloat *to) { unit_split_into(x, y, to, PART); }

/* n numbers as the parts of numbers in the same order, each part in a plane of its own, `next` apart. */
static void unit_cut(const real *from, ptrdiff_t n, bfloat *to, ptrdiff_t next) {
    const bits half = (bits){0} + 0x8000, upper = (bits){0} + 0xffff0000;
    static const uint16_t odd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                     33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const __m512i upper_halves = _mm512_loadu_si512(odd);
    for (ptrdiff_t i = 0; i < n; i += 32) {
        const ptrdiff_t left = n - i;
        vec x, y;
        if (left >= 32) x = vec_load(from + i), y = vec_load(from + i + 16);
        else x = vec_load_part(from + i, left < 16 ? left : 16), y = vec_load_part(from + i + 16, left < 16 ? 0 : left - 16);
        for (int part = 0; part < 3; part++) {
            bits a = (bits)x, b = (bits)y;
            if (part < 2) a += half, b += half;
            const __m512i both = _mm512_permutex2var_epi16((__m512i)a, upper_halves, (__m512i)b);
            if (left >= 32) _mm512_storeu_si512(to + part * next + i, both);
            else _mm512_mask_storeu_epi16(to + part * next + i, (__mmask32)((1ull << left) - 1), both);
            x = x - (vec)(a & upper);
            y = y - (vec)(b & upper);
        }
    }
}

/* n numbers (a multiple of 32) one place later, behind a zero; the last one is left out. */
ALWAYS_INLINE void unit_shift(const bfloat *from, ptrdiff_t n, bfloat *to) {
    _mm512_store_si512(to, _mm512_maskz_loadu_epi16((__mmask32)-2, from - 1));
    for (ptrdiff_t i = 32; i < n; i += 32) _mm512_store_si512(to + i, _mm512_loadu_si512(from + i - 1));
}

/* Eight tiles of rows of 64 bytes, for blocks of 1 to 32 rows of A: the unit's time is that of the rows that are there. Whatever the
   tiles held is gone. */
static void unit_layout(int rows) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } layout __attribute__((aligned(64))) = {.palette = 1};
    const int first = rows < 16 ? rows : 16, second = rows > 16 ? rows - 16 : 16;
    for (int tile = 0; tile < 8; tile++) {
        layout.row_bytes[tile] = 64;
        layout.rows[tile] = tile == 0 || tile == 1 || tile == 4 ? first : tile == 2 || tile == 3 || tile == 5 ? second : 16;
    }
    __asm__ volatile("" ::"m"(layout)); /* GCC 12 believes that _tile_loadconfig reads 8 bytes of it */
    _tile_loadconfig(&layout);
}
ALWAYS_INLINE void unit_close(void) { _tile_release(); }

/* The compiler does not know that tile loads read memory. */
#define MEMORY_WRITTEN __asm__ volatile("" ::: "memory")

/* Tiles 0 to 3 hold the sums of 2 x 2 tiles of C, 4 and 5 a part of two tiles of A, 6 and 7 of B. R, V: rows and columns of
   tiles that are there, 1 or 2. */
/* One multiplication by the vectors beside four by the unit makes these 25 % faster (430 to 540 GFLOP/s, Xeon at 3.6 GHz); additions,
   loads, stores and idle instructions do not. Found by trying; no manual tells why. */
#define UNIT_NUDGE __asm__ volatile("vmulps %%xmm0, %%xmm0, %0\n\tvmulps %%xmm0, %%xmm0, %0" : "=x"(nudge))

#define UNIT_ACROSS \
    UNIT_NUDGE; \
    _tile_dpbf16ps(0, 4, 6); \
    if (V == 2) _tile_dpbf16ps(1, 4, 7); \
    if (R == 2) _tile_dpbf16ps(2, 5, 6); \
    if (R == 2 && V == 2) _tile_dpbf16ps(3, 5, 7)
#define UNIT_A(part) \
    _tile_loadd(4, a + part * a_part, a_row); \
    if (R == 2) _tile_loadd(5, a + a_next + part * a_part, a_row)
#define UNIT_B(part) \
    _tile_loadd(6, b + part * b_part, 64); \
    if (V == 2) _tile_loadd(7, b + b_next + part * b_part, 64)

/* C[R x 16, V x 16] (+)= A B is begun, carried on over one tile of k in six steps, one for each pair of parts, and ended; a_next,
   b_next: distance of the second row of A's tiles and of the second column of B's. Their parts may also lie in
   planes, a_part and b_part apart, and A's rows a_row bytes apart. Between the steps the vectors are free: 60 instructions there cost nothing. */
ALWAYS_INLINE void unit_begin(const int R, const int V, const real *c, ptrdiff_t c_row, int accumulate) {
    const ptrdiff_t row_bytes = c_row * (ptrdiff_t)sizeof(real);
    if (!accumulate) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        return;
    }
    MEMORY_WRITTEN;
    _tile_loadd(0, c, row_bytes);
    if (V == 2) _tile_loadd(1, c + 16, row_bytes);
    if (R == 2) _tile_loadd(2, c + 16 * c_row, row_bytes);
    if (R == 2 && V == 2) _tile_loadd(3, c + 16 * c_row + 16, row_bytes);
}

ALWAYS_INLINE void unit_step_in_planes(const int sixth, const int R, const int V, const bfloat *a, ptrdiff_t a_row,
                                       ptrdiff_t a_part, ptrdiff_t a_next, const bfloat *b, ptrdiff_t b_part, ptrdiff_t b_next) {
    __m128 nudge;
    MEMORY_WRITTEN;
    switch (sixth) {
    case 0:
        UNIT_A(0);
        UNIT_B(1);
        break;
    case 1: UNIT_B(2); break;
    case 2: UNIT_B(0); break;
    case 3: UNIT_A(2); break;
    case 4: UNIT_A(1); break;
    default: UNIT_B(1);
    }
    UNIT_ACROSS;
}
ALWAYS_INLINE void unit_step(const int sixth, const int R, const int V, const bfloat *a, ptrdiff_t a_next, const bfloat *b,
                             ptrdiff_t b_next) {
    unit_step_in_planes(sixth, R, V, a, 64, PART, a_next, b, PART, b_next);
}

ALWAYS_INLINE void unit_end(const int R, const int V, real *c, ptrdiff_t c_row) {
    const ptrdiff_t row_bytes = c_row * (ptrdiff_t)sizeof(real);
    _tile_stored(0, c, row_bytes);
    if (V == 2) _tile_stored(1, c + 16, row_bytes);
    if (R == 2) _tile_stored(2, c + 16 * c_row, row_bytes);
    if (R == 2 && V == 2) _tile_stored(3, c + 16 * c_row + 16, row_bytes);
}

#else

ALWAYS_INLINE void unit_layout(int rows) { (void)rows; }
ALWAYS_INLINE void unit_close(void) {}
ALWAYS_INLINE void unit_split_into(vec x, vec y, bfloat *to, ptrdiff_t next) { (void)x, (void)y, (void)to, (void)next; }
ALWAYS_INLINE void unit_split(vec x, vec y, bfloat *to) { (void)x, (void)y, (void)to; }
ALWAYS_INLINE void unit_shift(const bfloat *from, ptrdiff_t n, bfloat *to) { (void)from, (void)n, (void)to; }
ALWAYS_INLINE void unit_cut(const real *from, ptrdiff_t n, bfloat *to, ptrdiff_t next) { (void)from, (void)n, (void)to, (void)next; }
ALWAYS_INLINE void unit_begin(const int R, const int V, const real *c, ptrdiff_t c_row, int accumulate) {
    (void)R, (void)V, (void)c, (void)c_row, (void)accumulate;
}
ALWAYS_INLINE void unit_step_in_planes(const int sixth, const int R, const int V, const bfloat *a, ptrdiff_t a_row,
                                       ptrdiff_t a_part, ptrdiff_t a_next, const bfloat *b, ptrdiff_t b_part, ptrdiff_t b_next) {
    (void)sixth, (void)R, (void)V, (void)a, (void)a_row, (void)a_part, (void)a_next, (void)b, (void)b_part, (void)b_next;
}
ALWAYS_INLINE void unit_step(const int sixth, const int R, const int V, const bfloat *a, ptrdiff_t a_next, const bfloat *b,
                             ptrdiff_t b_next) {
    (void)sixth, (void)R, (void)V, (void)a, (void)a_next, (void)b, (void)b_next;
}
ALWAYS_INLINE void unit_end(const int R, const int V, real *c, ptrdiff_t c_row) { (void)R, (void)V, (void)c, (void)c_row; }

#endif
#endif
