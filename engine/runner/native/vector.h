/* Vectors of float32 as wide as the processor's: 16 lanes of AVX-512, or 8 of AVX2. Knows numbers alone. */
#pragma once
#include <immintrin.h>

#ifdef __AVX512F__
#define LANES 16
typedef __m512 Vector;
#define load _mm512_loadu_ps
#define store _mm512_storeu_ps
#define all_of _mm512_set1_ps
#define zeros _mm512_setzero_ps
#define add _mm512_add_ps
#define subtract _mm512_sub_ps
#define times _mm512_mul_ps
#define divide _mm512_div_ps
#define maximum _mm512_max_ps
#define fused _mm512_fmadd_ps
#define permute _mm512_permute_ps /* within each four lanes */
#define four_of(x) _mm512_broadcast_f32x4(_mm_loadu_ps(x))
#define widened(x) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(x))) /* LANES float16 numbers */
#define first_of_fours(v) _mm512_maskz_mov_ps(0x1111, v)                      /* zero beside them */
#define store_firsts(x, v) _mm_storeu_ps(x, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, v)))
#define FOLD(op, v) /* all lanes of v become op of all, in the order of torch's reductions */ \
    v = op(v, _mm512_shuffle_f32x4(v, v, 0x4E)); \
    v = op(v, _mm512_shuffle_f32x4(v, v, 0xB1)); \
    v = op(v, _mm512_shuffle_ps(v, v, 0x4E)); \
    v = op(v, _mm512_shuffle_ps(v, v, 0xB1))
#else
#define LANES 8
typedef __m256 Vector;
#define load _mm256_loadu_ps
#define store _mm256_storeu_ps
#define all_of _mm256_set1_ps
#define zeros _mm256_setzero_ps
#define add _mm256_add_ps
#define subtract _mm256_sub_ps
#define times _mm256_mul_ps
#define divide _mm256_div_ps
#define maximum _mm256_max_ps
#define fused _mm256_fmadd_ps
#define permute _mm256_permute_ps
#define four_of(x) _mm256_broadcast_ps((const __m128 *)(x))
#define widened(x) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x)))
#define first_of_fours(v) _mm256_blend_ps(_mm256_setzero_ps(), v, 0x11)
#define store_firsts(x, v) \
    _mm_storel_pi((__m64 *)(x), _mm_unpacklo_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)))
#define FOLD(op, v) \
    v = op(v, _mm256_permute2f128_ps(v, v, 0x01)); \
    v = op(v, _mm256_shuffle_ps(v, v, 0x4E)); \
    v = op(v, _mm256_shuffle_ps(v, v, 0xB1))
#endif
