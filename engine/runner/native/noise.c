/* Gumbel noise of a seed and a step, with the bits of engine/runner/sampling.py: counters mixed by splitmix64, and the
 * logarithms that torch takes, log1p from Sleef and log from MKL. engine/runner/native/noise.py compares the bits.
 */
#include <stdint.h>

#include "vector.h"

#define GOLDEN 0x9E3779B97F4A7C15u

typedef Vector (*Log1p)(Vector);
typedef void (*Log)(int, const float *, float *, int64_t);

static inline uint64_t mixed(uint64_t word) {
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9u;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EBu;
    return word ^ (word >> 31);
}

/* Noise [rows, codes] of (seeds[row], steps[row]); codes is a multiple of 16. mode: MKL's, as torch sets it. */
void gumbel(
    const int64_t *seeds, const int64_t *steps, int64_t rows, int64_t codes, Log1p log1p, Log log, int64_t mode,
    float *noise, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        float *own = noise + row * codes;
        uint64_t key = mixed((uint64_t)seeds[row] + (uint64_t)steps[row] + GOLDEN);
        for (int64_t i = 0; i < codes; i++) {
            uint64_t bits = mixed(key + (uint64_t)(i + 1) * GOLDEN) >> 11 | 1;
            own[i] = (float)(int64_t)bits * 0x1p-53f;
        }
        for (int64_t i = 0; i < codes; i += LANES)
            store(own + i, subtract(zeros(), log1p(subtract(zeros(), load(own + i)))));
        log((int)codes, own, own, mode);
        for (int64_t i = 0; i < codes; i += LANES) store(own + i, subtract(zeros(), load(own + i)));
    }
}
