/* The forward pass of a Llama-shaped decoder over few tokens, float32, for processors with AVX-512, with the bits of
 * torch's operators. Every sum is taken in the order of the library that torch calls: MKL's products of one row for
 * attention, oneDNN's for the linear layers, torch's own for norms and softmax. Compiled without contraction, so that
 * a product is rounded before it is added except where an FMA is written. engine/runner/native/choice.py compares the
 * bits with torch's before it is used. Knows rows and weights; knows no image.
 */
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#define PANEL 64 /* columns of a packed weight that lie together: [columns / PANEL][inputs][PANEL] float16 */
#define LANES 16
#define AHEAD (16 * PANEL) /* weights are fetched so far ahead */

typedef __m512 (*Exp)(__m512);

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
    __m512 root = _mm512_set1_ps(1.0f / sqrtf(sum_of_squares(x, width) / (float)width + epsilon));
    for (int64_t i = 0; i < width; i += LANES)
        _mm512_storeu_ps(
            out + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), root), _mm512_loadu_ps(gain + i)));
}

/* `rows` rows of x [.., inputs] by a panel: each sum a chain of FMAs over a chunk, as in oneDNN's products. */
static inline __attribute__((always_inline)) void tile(
    const int rows, const float *x, const Product *product, const uint16_t *panel, __m512 totals[6][4]) {
    for (int64_t first = 0; first < product->inputs; first += product->chunk) {
        __m512 sums[6][4];
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < 4; c++) sums[r][c] = _mm512_setzero_ps();
        for (int64_t k = first; k < first + product->chunk; k++, panel += PANEL) {
            _mm_prefetch((const char *)(panel + AHEAD), _MM_HINT_T0);
            _mm_prefetch((const char *)(panel + AHEAD + PANEL / 2), _MM_HINT_T0);
            __m512 weights[4];
            for (int c = 0; c < 4; c++)
                weights[c] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(panel + LANES * c)));
            for (int r = 0; r < rows; r++) {
                __m512 value = _mm512_set1_ps(x[r * product->inputs + k]);
                for (int c = 0; c < 4; c++) sums[r][c] = _mm512_fmadd_ps(value, weights[c], sums[r][c]);
            }
        }
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < 4; c++) totals[r][c] = first ? _mm512_add_ps(totals[r][c], sums[r][c]) : sums[r][c];
    }
}

/* x [rows, inputs] by one panel of a weight, plus bias, plus what `residual` holds there, to out [rows, columns]. */
static void multiply_panel(
    const float *x, int64_t rows, const Product *product, int64_t panel, const float *residual, float *out,
    int64_t columns) {
    const uint16_t *weight = product->weight + panel * product->inputs * PANEL;
    for (int64_t first = 0; first < rows;) {
        __m512 sums[6][4];
        /* in as many tiles of up to six rows as it takes, of nearly equal size */
        int64_t tiles = (rows - first + 5) / 6, count = (rows - first + tiles - 1) / tiles;
        const float *from = x + first * product->inputs;
        switch (count) {
        case 1: tile(1, from, product, weight, sums); break;
        case 2: tile(2, from, product, weight, sums); break;
        case 3: tile(3, from, product, weight, sums); break;
        case 4: tile(4, from, product, weight, sums); break;
        case 5: tile(5, from, product, weight, sums); break;
        default: tile(6, from, product, weight, sums);
        }
        for (int64_t r = 0; r < count; r++)
            for (int c = 0; c < 4; c++) {
                int64_t column = panel * PANEL + c * LANES, at = (first + r) * columns + column;
                __m512 sum = sums[r][c];
                if (product->bias) sum = _mm512_add_ps(sum, _mm512_loadu_ps(product->bias + column));
                if (residual) sum = _mm512_add_ps(_mm512_loadu_ps(residual + at), sum);
                _mm512_storeu_ps(out + at, sum);
            }
        first += count;
    }
}

#define FOLD(op, v) \
    v = op(v, _mm512_shuffle_f32x4(v, v, 0x4E)); \
    v = op(v, _mm512_shuffle_f32x4(v, v, 0xB1)); \
    v = op(v, _mm512_shuffle_ps(v, v, 0x4E)); \
    v = op(v, _mm512_shuffle_ps(v, v, 0xB1))

/* Softmax of scores [n], n a multiple of 16; those that are masked add nothing. */
static void softmax(float *scores, int64_t n, Exp exp) {
    __m512 most = _mm512_loadu_ps(scores), sum = _mm512_setzero_ps();
    for (int64_t i = LANES; i < n; i += LANES) most = _mm512_max_ps(most, _mm512_loadu_ps(scores + i));
    FOLD(_mm512_max_ps, most);
    for (int64_t i = 0; i < n; i += LANES) {
        __m512 part = exp(_mm512_sub_ps(_mm512_loadu_ps(scores + i), most));
        sum = i ? _mm512_add_ps(sum, part) : part;
        _mm512_storeu_ps(scores + i, part);
    }
    FOLD(_mm512_add_ps, sum);
    __m512 share = _mm512_div_ps(_mm512_set1_ps(1.0f), sum);
    for (int64_t i = 0; i < n; i += LANES)
        _mm512_storeu_ps(scores + i, _mm512_mul_ps(_mm512_loadu_ps(scores + i), share));
}

static void rotate(const float *x, const float *cos, const float *sin, int64_t d, float *out) {
    for (int64_t i = 0; i < d; i++) {
        float turned = x[i < d / 2 ? i + d / 2 : i - d / 2] * sin[i];
        out[i] = x[i] * cos[i] + turned;
    }
}

/* Scaled scores of queries [n, d] with four keys [4, d], to scores[q * stride .. + 3]. MKL's order for one row: the
 * first four products in a row, then every fourth one in a sum of its own, and the four sums by twos. */
static void score_four(
    const float *queries, int64_t n, const float *keys, int64_t d, float scale, float *scores, int64_t stride) {
    __m512 parts[d / 4]; /* parts[k]: of all four keys the numbers 4k to 4k + 3 */
    for (int64_t i = 0; i < d; i += LANES) {
        __m512 a = _mm512_loadu_ps(keys + i), b = _mm512_loadu_ps(keys + d + i);
        __m512 c = _mm512_loadu_ps(keys + 2 * d + i), e = _mm512_loadu_ps(keys + 3 * d + i);
        __m512 low = _mm512_shuffle_f32x4(a, b, 0x44), high = _mm512_shuffle_f32x4(a, b, 0xEE);
        __m512 low2 = _mm512_shuffle_f32x4(c, e, 0x44), high2 = _mm512_shuffle_f32x4(c, e, 0xEE);
        parts[i / 4] = _mm512_shuffle_f32x4(low, low2, 0x88), parts[i / 4 + 1] = _mm512_shuffle_f32x4(low, low2, 0xDD);
        parts[i / 4 + 2] = _mm512_shuffle_f32x4(high, high2, 0x88);
        parts[i / 4 + 3] = _mm512_shuffle_f32x4(high, high2, 0xDD);
    }
    for (int64_t q = 0; q < n; q++, queries += d, scores += stride) {
        __m512 product = _mm512_mul_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(queries)), parts[0]);
        __m512 sum = _mm512_add_ps(product, _mm512_permute_ps(product, 0x55));
        sum = _mm512_add_ps(sum, _mm512_permute_ps(product, 0xAA));
        sum = _mm512_maskz_add_ps(0x1111, sum, _mm512_permute_ps(product, 0xFF));
        for (int64_t k = 1; k < d / 4; k++)
            sum = _mm512_add_ps(
                sum, _mm512_mul_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(queries + 4 * k)), parts[k]));
        sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0x4E));
        sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0xB1));
        sum = _mm512_mul_ps(_mm512_maskz_compress_ps(0x1111, sum), _mm512_set1_ps(scale));
        _mm_storeu_ps(scores, _mm512_castps512_ps128(sum));
    }
}

/* Sums of values [n, d] by the weights of `queries` queries, to out[q * d ..]: one position after the other. */
static inline __attribute__((always_inline)) void mix(
    const int queries, const float *weights, int64_t stride, const float *values, int64_t n, int64_t d, float *out) {
    for (int64_t i = 0; i < d; i += PANEL) {
        __m512 sums[4][4];
        for (int q = 0; q < queries; q++)
            for (int c = 0; c < 4; c++) sums[q][c] = _mm512_setzero_ps();
        for (int64_t s = 0; s < n; s++) {
            __m512 value[4];
            for (int c = 0; c < 4; c++) value[c] = _mm512_loadu_ps(values + s * d + i + LANES * c);
            for (int q = 0; q < queries; q++) {
                __m512 weight = _mm512_set1_ps(weights[q * stride + s]);
                for (int c = 0; c < 4; c++) sums[q][c] = _mm512_add_ps(sums[q][c], _mm512_mul_ps(weight, value[c]));
            }
        }
        for (int q = 0; q < queries; q++)
            for (int c = 0; c < 4; c++) _mm512_storeu_ps(out + q * d + i + LANES * c, sums[q][c]);
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
    const int64_t bound = (at[count - 1] + LANES) / LANES * LANES;
    for (int64_t s = 0; s < bound; s += 4) score_four(queries, n, keys + s * d, d, m->scale, scores + s, bound);
    for (int64_t q = 0; q < n; q++) {
        for (int64_t s = at[q / groups] + 1; s < bound; s++) scores[q * bound + s] = -INFINITY;
        softmax(scores + q * bound, bound, m->exp);
    }
    int64_t q = 0, end = at[count - 1] + 1;
    for (; q + 4 <= n; q += 4) mix(4, scores + q * bound, bound, values, end, d, mixed + q * d);
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
            __m512 gate = _mm512_loadu_ps(both + 2 * r * inner + i);
            __m512 power = m->exp(_mm512_sub_ps(_mm512_setzero_ps(), gate));
            gate = _mm512_div_ps(gate, _mm512_add_ps(_mm512_set1_ps(1.0f), power));
            _mm512_storeu_ps(out + r * inner + i, _mm512_mul_ps(gate, _mm512_loadu_ps(both + (2 * r + 1) * inner + i)));
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
