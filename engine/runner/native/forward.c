/* The forward pass of a Llama-shaped decoder over few tokens, float32, with the bits of torch's operators.
 * Every sum is taken in the order of the library that torch calls: MKL's products of one row for attention, oneDNN's
 * for the linear layers, torch's own for norms and softmax. Compiled without contraction, so that a product is rounded
 * before it is added except where an FMA is written. engine/runner/native/choice.py compares the bits with torch's
 * before it is used. Knows rows and weights; knows no image.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "vector.h"

#define PANEL (4 * LANES) /* columns of a packed weight that lie together: [columns / PANEL][inputs][PANEL] float16 */
#define AHEAD 1024 /* weights are fetched so far ahead */
#define KEYS 4 /* that are scored together: what of them lies in one vector, and in how many vectors */
#define KEYS_EACH (LANES / 4)
#define SPANS (KEYS / KEYS_EACH)
#define TOGETHER (LANES / 4) /* vectors of a panel, of four rows and more, or queries: their sums fit the registers */

typedef Vector (*Exp)(Vector);

typedef struct {
    const uint16_t *weight;
    const float *bias; /* or NULL */
    int64_t inputs, chunk; /* so many products are one sum; the sums of all chunks are added in their order */
} Product;

typedef struct {
    const float *input_gain, *post_gain;
    Product qkv, o, gate_up, down;
} Layer;

typedef struct {
    int64_t layers, width, inner, heads, kv_heads, head_dim;
    /* cos and sin: signed, [positions, head_dim] */
    float input_epsilon, post_epsilon, epsilon, scale;
    const float *gain, *cos, *sin;
    Exp exp; /* e^x, as torch computes it in SiLU and softmax */
    const Layer *layer;
} Model;

typedef struct {
    float *keys, *values; /* [layers, rows, kv_heads, positions, head_dim], of these strides in numbers */
    int64_t layer, row, head, positions;
    const int64_t *lengths; /* of each row */
} Cache;

/* The sum of the squares of x [n], n a multiple of 32, in the order of torch.sum of its squares: lanes of 8, four
 * accumulators, cascaded every 16. */
static float sum_of_squares(const float *x, int64_t n) {
    __m256 sums[4][4];
    int64_t blocks = n / 32, block = 0, power = 4;
    while (4 * power < 64 && (1LL << (4 * power)) < blocks) power++;
    int64_t step = 1LL << power;
    for (int level = 0; level < 4; level++)
        for (int k = 0; k < 4; k++) sums[level][k] = _mm256_setzero_ps();
    while (block < blocks) {
        int64_t end = block + step <= blocks ? block + step : blocks, whole = end == block + step;
        for (; block < end; block++)
            for (int k = 0; k < 4; k++) {
                __m256 part = _mm256_loadu_ps(x + 32 * block + 8 * k);
                sums[0][k] = _mm256_add_ps(sums[0][k], _mm256_mul_ps(part, part));
            }
        for (int level = 1; whole && level < 4; level++) {
            for (int k = 0; k < 4; k++) {
                sums[level][k] = _mm256_add_ps(sums[level][k], sums[level - 1][k]);
                sums[level - 1][k] = _mm256_setzero_ps();
            }
            if (block & ((step - 1) << (level * power))) break;
        }
    }
    for (int level = 1; level < 4; level++)
        for (int k = 0; k < 4; k++) sums[0][k] = _mm256_add_ps(sums[0][k], sums[level][k]);
    for (int k = 1; k < 4; k++) sums[0][0] = _mm256_add_ps(sums[0][0], sums[0][k]);
    float lanes[8], sum = 0.0f;
    _mm256_storeu_ps(lanes, sums[0][0]);
    for (int k = 0; k < 8; k++) sum += lanes[k];
    return sum;
}

static void rms_norm(const float *x, const float *gain, float epsilon, int64_t width, float *out) {
    Vector root = all_of(1.0f / sqrtf(sum_of_squares(x, width) / (float)width + epsilon));
    for (int64_t i = 0; i < width; i += LANES) store(out + i, times(times(load(x + i), root), load(gain + i)));
}

/* `rows` rows of x [.., inputs] by a panel, `vectors` vectors of its columns at once: each sum a chain of FMAs over a
 * chunk, as in oneDNN's products. */
static inline __attribute__((always_inline)) void tile(
    const int rows, const int vectors, const float *x, const Product *product, const uint16_t *panel,
    Vector totals[6][4]) {
    for (int begin = 0; begin < 4; begin += vectors)
        for (int64_t first = 0; first < product->inputs; first += product->chunk) {
            const uint16_t *weight = panel + first * PANEL + begin * LANES;
            Vector sums[6][4];
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < vectors; c++) sums[r][c] = zeros();
            for (int64_t k = first; k < first + product->chunk; k++, weight += PANEL) {
                for (int c = 0; c < PANEL; c += 32) _mm_prefetch((const char *)(weight + AHEAD + c), _MM_HINT_T0);
                Vector part[4];
                for (int c = 0; c < vectors; c++) part[c] = widened(weight + LANES * c);
                for (int r = 0; r < rows; r++) {
                    Vector value = all_of(x[r * product->inputs + k]);
                    for (int c = 0; c < vectors; c++) sums[r][c] = fused(value, part[c], sums[r][c]);
                }
            }
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < vectors; c++) {
                    Vector *total = &totals[r][begin + c];
                    *total = first ? add(*total, sums[r][c]) : sums[r][c];
                }
        }
}

/* x [rows, inputs] by one panel of a weight, plus bias, plus what `residual` holds there, to out [rows, columns]. */
static void multiply_panel(
    const float *x, int64_t rows, const Product *product, int64_t panel, const float *residual, float *out,
    int64_t columns) {
    const uint16_t *weight = product->weight + panel * product->inputs * PANEL;
    for (int64_t first = 0; first < rows;) {
        Vector sums[6][4];
        /* in as many tiles of up to six rows as it takes, of nearly equal size */
        int64_t needed = (rows - first + 5) / 6, count = (rows - first + needed - 1) / needed;
        const float *from = x + first * product->inputs;
        switch (count) {
        case 1: tile(1, 4, from, product, weight, sums); break;
        case 2: tile(2, 4, from, product, weight, sums); break;
        case 3: tile(3, 4, from, product, weight, sums); break;
        case 4: tile(4, TOGETHER, from, product, weight, sums); break;
        case 5: tile(5, TOGETHER, from, product, weight, sums); break;
        default: tile(6, TOGETHER, from, product, weight, sums);
        }
        for (int64_t r = 0; r < count; r++)
            for (int c = 0; c < 4; c++) {
                int64_t column = panel * PANEL + c * LANES, at = (first + r) * columns + column;
                Vector sum = sums[r][c];
                if (product->bias) sum = add(sum, load(product->bias + column));
                if (residual) sum = add(load(residual + at), sum);
                store(out + at, sum);
            }
        first += count;
    }
}

/* Softmax of scores [n], n a multiple of 16; those that are masked add nothing. */
static void softmax(float *scores, int64_t n, Exp exp) {
    Vector most = load(scores), sum = zeros();
    for (int64_t i = LANES; i < n; i += LANES) most = maximum(most, load(scores + i));
    FOLD(maximum, most);
    for (int64_t i = 0; i < n; i += LANES) {
        Vector part = exp(subtract(load(scores + i), most));
        sum = i ? add(sum, part) : part;
        store(scores + i, part);
    }
    FOLD(add, sum);
    Vector share = divide(all_of(1.0f), sum);
    for (int64_t i = 0; i < n; i += LANES) store(scores + i, times(load(scores + i), share));
}

static void rotate(const float *x, const float *cos, const float *sin, int64_t d, float *out) {
    for (int64_t i = 0; i < d; i++) {
        float turned = x[i < d / 2 ? i + d / 2 : i - d / 2] * sin[i];
        out[i] = x[i] * cos[i] + turned;
    }
}

/* The numbers of KEYS keys [KEYS, d] by fours: parts[k][s] has of each key of span s the numbers 4k to 4k + 3. */
static void take_apart(const float *keys, int64_t d, Vector parts[][SPANS]) {
    for (int64_t i = 0; i < d; i += LANES) {
#ifdef __AVX512F__
        __m512 a = load(keys + i), b = load(keys + d + i), c = load(keys + 2 * d + i), e = load(keys + 3 * d + i);
        __m512 low = _mm512_shuffle_f32x4(a, b, 0x44), high = _mm512_shuffle_f32x4(a, b, 0xEE);
        __m512 low2 = _mm512_shuffle_f32x4(c, e, 0x44), high2 = _mm512_shuffle_f32x4(c, e, 0xEE);
        parts[i / 4][0] = _mm512_shuffle_f32x4(low, low2, 0x88);
        parts[i / 4 + 1][0] = _mm512_shuffle_f32x4(low, low2, 0xDD);
        parts[i / 4 + 2][0] = _mm512_shuffle_f32x4(high, high2, 0x88);
        parts[i / 4 + 3][0] = _mm512_shuffle_f32x4(high, high2, 0xDD);
#else
        for (int s = 0; s < SPANS; s++) {
            __m256 a = load(keys + 2 * s * d + i), b = load(keys + (2 * s + 1) * d + i);
            parts[i / 4][s] = _mm256_permute2f128_ps(a, b, 0x20);
            parts[i / 4 + 1][s] = _mm256_permute2f128_ps(a, b, 0x31);
        }
#endif
    }
}

/* Scaled scores of queries [n, d] with KEYS keys [KEYS, d], to scores[q * stride ..]. MKL's order for one row: the
 * first four products in a row, then every fourth one in a sum of its own, and the four sums by twos. */
static void score_keys(
    const float *queries, int64_t n, const float *keys, int64_t d, float scale, float *scores, int64_t stride) {
    Vector parts[d / 4][SPANS];
    take_apart(keys, d, parts);
    for (int64_t q = 0; q < n; q++, queries += d, scores += stride) {
        Vector sums[SPANS];
        for (int s = 0; s < SPANS; s++) {
            Vector product = times(four_of(queries), parts[0][s]);
            Vector three = add(add(product, permute(product, 0x55)), permute(product, 0xAA));
            sums[s] = first_of_fours(add(three, permute(product, 0xFF)));
        }
        for (int64_t k = 1; k < d / 4; k++) {
            Vector four = four_of(queries + 4 * k);
            for (int s = 0; s < SPANS; s++) sums[s] = add(sums[s], times(four, parts[k][s]));
        }
        for (int s = 0; s < SPANS; s++) {
            Vector sum = add(sums[s], permute(sums[s], 0x4E));
            sum = times(add(sum, permute(sum, 0xB1)), all_of(scale));
            store_firsts(scores + KEYS_EACH * s, sum);
        }
    }
}

/* Sums of values [n, d] by the weights of `queries` queries, to out[q * d ..]: one position after the other. */
static inline __attribute__((always_inline)) void mix(
    const int queries, const float *weights, int64_t stride, const float *values, int64_t n, int64_t d, float *out) {
    for (int64_t i = 0; i < d; i += 4 * LANES) {
        Vector sums[TOGETHER][4];
        for (int q = 0; q < queries; q++)
            for (int c = 0; c < 4; c++) sums[q][c] = zeros();
        for (int64_t s = 0; s < n; s++) {
            Vector value[4];
            for (int c = 0; c < 4; c++) value[c] = load(values + s * d + i + LANES * c);
            for (int q = 0; q < queries; q++) {
                Vector weight = all_of(weights[q * stride + s]);
                for (int c = 0; c < 4; c++) sums[q][c] = add(sums[q][c], times(weight, value[c]));
            }
        }
        for (int q = 0; q < queries; q++)
            for (int c = 0; c < 4; c++) store(out + q * d + i + LANES * c, sums[q][c]);
    }
}

/* Rotary embedding, cache write and attention of `count` tokens of a row, by one head of keys and all its queries.
 * scratch: of count * groups queries, what each takes: head_dim twice, and positions. */
static void attend(
    const Model *m, const Cache *cache, int64_t layer, int64_t row, int64_t kv_head, int64_t count, const float *heads,
    float *out, float *scratch) {
    const int64_t d = m->head_dim, groups = m->heads / m->kv_heads, stride = (m->heads + 2 * m->kv_heads) * d;
    const int64_t offset = layer * cache->layer + row * cache->row + kv_head * cache->head, n = count * groups;
    float *keys = cache->keys + offset, *values = cache->values + offset;
    float *queries = scratch, *mixed = queries + n * d, *scores = mixed + n * d;
    int64_t at[count];
    for (int64_t t = 0; t < count; t++) { /* what lies beyond the last position overwrites it, to no purpose */
        at[t] = cache->lengths[row] + t < cache->positions ? cache->lengths[row] + t : cache->positions - 1;
        const float *token = heads + (row * count + t) * stride, *cos = m->cos + at[t] * d, *sin = m->sin + at[t] * d;
        rotate(token + (m->heads + kv_head) * d, cos, sin, d, keys + at[t] * d);
        memcpy(values + at[t] * d, token + (m->heads + m->kv_heads + kv_head) * d, d * sizeof(float));
        for (int64_t g = 0; g < groups; g++)
            rotate(token + (kv_head * groups + g) * d, cos, sin, d, queries + (t * groups + g) * d);
    }
    const int64_t bound = (at[count - 1] + 16) / 16 * 16;
    for (int64_t s = 0; s < bound; s += KEYS) score_keys(queries, n, keys + s * d, d, m->scale, scores + s, bound);
    for (int64_t q = 0; q < n; q++) {
        for (int64_t s = at[q / groups] + 1; s < bound; s++) scores[q * bound + s] = -INFINITY;
        softmax(scores + q * bound, bound, m->exp);
    }
    int64_t q = 0, end = at[count - 1] + 1;
    for (; q + TOGETHER <= n; q += TOGETHER)
        mix(TOGETHER, scores + q * bound, bound, values, end, d, mixed + q * d);
    for (; q < n; q++) mix(1, scores + q * bound, bound, values, end, d, mixed + q * d);
    for (q = 0; q < n; q++)
        memcpy(
            out + ((row * count + q / groups) * m->heads + kv_head * groups + q % groups) * d, mixed + q * d,
            d * sizeof(float));
}

/* One panel of gate and the same of up, joined: silu(gate) * up, to out [rows, inner]. */
static void gate_panel(
    const Model *m, const Layer *layer, const float *x, int64_t rows, int64_t panel, float *both, float *out) {
    const int64_t inner = m->inner;
    multiply_panel(x, rows, &layer->gate_up, panel, NULL, both, 2 * inner);
    multiply_panel(x, rows, &layer->gate_up, panel + inner / PANEL, NULL, both, 2 * inner);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = panel * PANEL; i < (panel + 1) * PANEL; i += LANES) {
            Vector gate = load(both + 2 * r * inner + i);
            gate = divide(gate, add(all_of(1.0f), m->exp(subtract(zeros(), gate))));
            store(out + r * inner + i, times(gate, load(both + (2 * r + 1) * inner + i)));
        }
}

/* x [rows, inputs] by a weight to out [rows, columns]. */
void multiply(const Product *product, int64_t rows, int64_t columns, const float *x, float *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < columns / PANEL; p++) multiply_panel(x, rows, product, p, NULL, out, columns);
}

/* Numbers of scratch of each thread: normed tokens, and its attention. */
static int64_t own_scratch(const Model *m, const Cache *cache, int64_t rows, int64_t count) {
    return rows * count * m->width + count * m->heads / m->kv_heads * (2 * m->head_dim + cache->positions);
}

/* Numbers of scratch that `forward` takes. */
int64_t scratch_size(const Model *m, const Cache *cache, int64_t rows, int64_t count, int threads) {
    int64_t heads = 2 * (m->heads + m->kv_heads) * m->head_dim;
    return rows * count * (m->width + heads + 3 * m->inner) + threads * own_scratch(m, cache, rows, count);
}

static void rms_norms(const float *x, const float *gain, float epsilon, int64_t width, int64_t rows, float *out) {
    for (int64_t r = 0; r < rows; r++) rms_norm(x + r * width, gain, epsilon, width, out + r * width);
}

/* Read `count` tokens of each of `rows` rows, one after the other: embeddings [rows, count, width] to the hidden states
 * after the last norm, out, of that shape. Norms are computed by each thread anew: that is faster than to wait. */
void forward(
    const Model *m, const Cache *cache, int64_t rows, int64_t count, const float *embeddings, float *out,
    float *scratch, int threads) {
    const int64_t tokens = rows * count, width = m->width, inner = m->inner;
    const int64_t query = m->heads * m->head_dim, heads = query + 2 * m->kv_heads * m->head_dim;
    float *hidden = scratch, *qkv = hidden + tokens * width, *attended = qkv + tokens * heads;
    float *both = attended + tokens * query, *gated = both + 2 * tokens * inner, *own = gated + tokens * inner;
    memcpy(hidden, embeddings, tokens * width * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        float *normal = own + omp_get_thread_num() * own_scratch(m, cache, rows, count);
        float *rest = normal + tokens * width;
        for (int64_t l = 0; l < m->layers; l++) {
            const Layer *layer = m->layer + l;
            rms_norms(hidden, layer->input_gain, m->input_epsilon, width, tokens, normal);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < heads / PANEL; p++)
                multiply_panel(normal, tokens, &layer->qkv, p, NULL, qkv, heads);
#pragma omp for schedule(static)
            for (int64_t n = 0; n < rows * m->kv_heads; n++)
                attend(m, cache, l, n / m->kv_heads, n % m->kv_heads, count, qkv, attended, rest);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < width / PANEL; p++)
                multiply_panel(attended, tokens, &layer->o, p, hidden, hidden, width);
            rms_norms(hidden, layer->post_gain, m->post_epsilon, width, tokens, normal);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < inner / PANEL; p++) gate_panel(m, layer, normal, tokens, p, both, gated);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < width / PANEL; p++)
                multiply_panel(gated, tokens, &layer->down, p, hidden, hidden, width);
        }
    }
    rms_norms(hidden, m->gain, m->epsilon, width, tokens, out);
}
