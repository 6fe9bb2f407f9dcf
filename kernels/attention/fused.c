/* Disentangled attention on flat sequences, forward and backward, for CPUs: every sequence and head by itself.
 *
 *     s_ij = (q_i.k_j + q_i.rel_k[i - j] + k_j.rel_q[i - j]) / sqrt(3 E);   p_i = softmax_j(s_i);   out_i = sum_j p_ij f_ij v_j
 *
 * Scores. The three terms are one sum over e: with keys and tables transposed (E rows of keys, of distances), the
 * scores of a query with LANES neighbouring keys need LANES neighbouring distances. So a position term is a load at
 * another place, and no product with a distance that no pair has is computed:
 *     s_ij = sum_e q_ie (k_je + rel_k[i - j]_e) + k_je rel_q[i - j]_e
 *
 * Gradients. With the dropout factors f and ds_ij = p_ij (f_ij d_out_i.v_j - sum_n p_in f_in d_out_i.v_n) / sqrt(3 E),
 *     d_q_i = sum_j ds_ij (k_j + rel_k[i - j])        d_rel_k[r] = sum_i ds_ij q_i, j = i - r
 *     d_k_j = sum_i ds_ij (q_i + rel_q[i - j])        d_rel_q[r] = sum_j ds_ij k_j, i = j + r
 *     d_v_j = sum_i p_ij f_ij d_out_i
 * All of these and the output are sums of rows, weighted by entries of a square that lie in a row, in a column or on a
 * diagonal: `weighted_sums` with other strides.
 *
 * Weights are kept for the backward pass, those that dropout removed with a minus sign. Dropout is that of the Triton
 * kernels: a Philox number (Salmon et al. 2011) of j, i, the head and the sequence. The gradients of the tables are left
 * as sums over every P-th sequence. So nothing depends on the number of threads.
 *
 * Shapes: T tokens of all sequences, B sequences, H heads, X = 3: query, key and value, E width of a head, R = 2
 * max_length distances (row r is distance r - max_length), P parts of the batch, L tokens of one sequence. float32.
 */
#include <math.h>
#include <string.h>

#include "vectors.h"

#define ROWS 4 /* 4 x 2 accumulators of 16 vector registers; the others have operands */
#define LOG2_E 1.44269504f
#define PHILOX_ROUNDS 7

typedef struct {
    const float *qkv_THXE, *rel_k_RHE, *rel_q_RHE, *d_out_THE;
    const int32_t *cu_seqlens;
    int64_t B, H, E, max_length, P;
    float scale, dropout_p;
    uint64_t seed;
    float *weights; /* those of a sequence's heads (H, L, L) start at its first token times H max_length; or NULL */
    float *out_THE, *d_qkv_THXE, *d_rel_k_PRHE, *d_rel_q_PRHE; /* of which a pass writes its own */
    int64_t next_task;                                         /* atomic, as the next */
    int out_of_memory;
} job_t;

/* What a thread owns: rows of one sequence and head, each of `width` floats, and squares. Squares have ROWS rows and
 * columns around them, which are zero where a diagonal may leave the square. */
typedef struct {
    int64_t width, square_stride, column_stride, table_stride;
    float *memory, *q, *k, *v, *d_out, *sums; /* (L, width) */
    float *columns;                           /* keys or values as (E, L) */
    float *rel_k, *rel_q, *d_rel_k, *d_rel_q; /* (R, width), or (E, R) in the order of j - i */
    float *weights, *d_scores;                /* (L, L) */
} scratch_t;

/* The larger of two, b where one is NaN. */
static inline vec larger(vec a, vec b) { return where(a > b, a) + where(~(a > b), b); }
static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t not_negative(int64_t a) { return a > 0 ? a : 0; }

static int reserve(scratch_t *t, const job_t *job)
{
    int64_t L = round_up(job->max_length, 2 * LANES);
    t->width = round_up(job->E, 2 * LANES);
    t->square_stride = L + 2 * LANES + 2 * ROWS;
    t->column_stride = L + LANES; /* not a power of two, so that rows do not share cache sets */
    t->table_stride = 2 * L + 3 * LANES;
    int64_t rows = (L + ROWS) * t->width, square = (L + 2 * ROWS) * t->square_stride;
    int64_t table = job->E * t->table_stride, table_rows = (2 * L + 3 * ROWS) * t->width;
    int64_t sizes[] = {rows, rows, rows, rows, rows, job->E * t->column_stride, 0, 0, 0, 0, square, square};
    for (int i = 6; i < 10; i++) sizes[i] = table > table_rows ? table : table_rows;
    float **arrays[] = {&t->q,     &t->k,     &t->v,       &t->d_out,   &t->sums,    &t->columns,
                        &t->rel_k, &t->rel_q, &t->d_rel_k, &t->d_rel_q, &t->weights, &t->d_scores};
    int64_t num_floats = 0;
    for (int i = 0; i < 12; i++) num_floats += sizes[i] + 2 * LANES;
    t->memory = calloc((size_t)num_floats, 4);
    float *place = t->memory;
    if (!place) return 0;
    for (int i = 0; i < 12; place += sizes[i++] + 2 * LANES) *arrays[i] = place;
    t->weights += ROWS * t->square_stride + ROWS;
    t->d_scores += ROWS * t->square_stride + ROWS;
    return 1;
}

static void copy_rows(const float *rows, int64_t stride, int64_t num, int64_t E, float factor, float *out, int64_t out_stride)
{
    for (int64_t n = 0; n < num; n++)
        for (int64_t e = 0; e < E; e++) out[n * out_stride + e] = factor * rows[n * stride + e];
}

/* The transpose, a block of rows at a time. */
static void copy_columns(const float *rows, int64_t stride, int64_t num, int64_t E, float factor, float *out,
                         int64_t out_stride)
{
    for (int64_t first = 0; first < num; first += 16)
        for (int64_t e = 0; e < E; e++)
            for (int64_t n = first; n < smaller(first + 16, num); n++)
                out[e * out_stride + n] = factor * rows[n * stride + e];
}

/* ROWS rows and `num_vectors` vectors of out_mn = sum_e x_me y_en, or of the scores: + x_me rel_k_e(n - m) + y_en
 * rel_q_e(n - m). */
INLINE void product_tile(int num_vectors, int is_scores, const float *x, int64_t width, const float *y, int64_t y_stride,
                         const float *rel_k, const float *rel_q, int64_t rel_stride, int64_t E, float *out,
                         int64_t out_stride)
{
    vec sum[ROWS][2];
    for (int m = 0; m < ROWS; m++)
        for (int v = 0; v < num_vectors; v++) sum[m][v] = splat(0);
    for (int64_t e = 0; e < E; e++)
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; m++) {
            vec x_m = splat(x[m * width + e]);
#pragma GCC unroll 2
            for (int v = 0; v < num_vectors; v++) {
                vec y_v = load(y + e * y_stride + v * LANES);
                if (is_scores) {
                    sum[m][v] += x_m * (y_v + load(rel_k + e * rel_stride + v * LANES - m));
                    sum[m][v] += y_v * load(rel_q + e * rel_stride + v * LANES - m);
                } else {
                    sum[m][v] += x_m * y_v;
                }
            }
        }
    for (int m = 0; m < ROWS; m++)
        for (int v = 0; v < num_vectors; v++) store(out + m * out_stride + v * LANES, sum[m][v]);
}

/* The square of the products of all rows of x with all columns. */
INLINE void products(int is_scores, const scratch_t *t, const float *x, const float *rel_k, const float *rel_q, int64_t L,
                     int64_t E, float *out)
{
    for (int64_t n = 0; n < L; n += 2 * LANES)
        for (int64_t m = 0; m < L; m += ROWS) {
            const float *rows = x + m * t->width, *columns = t->columns + n;
            float *tile = out + m * t->square_stride + n;
            if (L - n > LANES)
                product_tile(2, is_scores, rows, t->width, columns, t->column_stride, rel_k + n - m, rel_q + n - m,
                             t->table_stride, E, tile, t->square_stride);
            else
                product_tile(1, is_scores, rows, t->width, columns, t->column_stride, rel_k + n - m, rel_q + n - m,
                             t->table_stride, E, tile, t->square_stride);
        }
}

/* out_m = sum_n w_mn x_n for ROWS rows m and the n from `first` to `last`, where w_mn is w[m m_stride + n n_stride]. With
 * a sign it is sum_n w_mn (x_n + rel[sign (m - n)]). The first num_rows are stored, or added to what is there. */
INLINE void weighted_sums(int sign, int is_added, const float *w, int64_t m_stride, int64_t n_stride, const float *x,
                          const float *rel, int64_t width, int64_t num_rows, int64_t first, int64_t last, float *out)
{
    for (int64_t e = 0; e < width; e += 2 * LANES) {
        vec sum[ROWS][2];
        for (int m = 0; m < ROWS; m++) sum[m][0] = sum[m][1] = splat(0);
        for (int64_t n = first; n < last; n++) {
            const float *x_n = x + n * width + e;
            vec low = load(x_n), high = load(x_n + LANES);
#pragma GCC unroll 4
            for (int m = 0; m < ROWS; m++) {
                const float *rel_mn = rel + sign * (m - n) * width + e;
                vec w_mn = splat(w[m * m_stride + n * n_stride]), x_low = low, x_high = high;
                if (sign) x_low += load(rel_mn), x_high += load(rel_mn + LANES);
                sum[m][0] += w_mn * x_low;
                sum[m][1] += w_mn * x_high;
            }
        }
        for (int64_t m = 0; m < num_rows; m++) {
            float *out_m = out + m * width + e;
            if (is_added) sum[m][0] += load(out_m), sum[m][1] += load(out_m + LANES);
            store(out_m, sum[m][0]);
            store(out_m + LANES, sum[m][1]);
        }
    }
}

/* These sums for all rows m and n of a sequence, into t->sums. */
INLINE void all_weighted_sums(int sign, scratch_t *t, const float *w, int64_t m_stride, int64_t n_stride, const float *x,
                              const float *rel, int64_t L)
{
    for (int64_t m = 0; m < L; m += ROWS)
        weighted_sums(sign, 0, w + m * m_stride, m_stride, n_stride, x, sign ? rel + sign * m * t->width : x, t->width,
                      smaller(ROWS, L - m), 0, L, t->sums + m * t->width);
}

/* 2^x by its Taylor series around the nearest integer, to 1e-8, for x of at most 0. It is 2^-100 below -100, which is
 * nothing beside the largest weight, so that no product is denormal. */
static inline vec power_of_2(vec x)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23: the sum with it has no digits after the point */
    const float ln2[] = {1.5252734e-5f, 1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f,
                         5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f}; /* ln(2)^k / k!, k = 7 to 1 */
    x = larger(splat(-100), x);
    vec shifted = x + shift, rest = x - (shifted - shift), y = splat(ln2[0]);
    for (int k = 1; k < 7; k++) y = y * rest + ln2[k];
    y = y * rest + 1;
    return (vec)((ivec)y + ((ivec)shifted << 23));
}

/* The weights of a row of scores, which are in units of ln(2). NaN where one of them is NaN or infinite. */
static void softmax(float *row, int64_t L)
{
    int64_t padded_L = round_up(L, LANES);
    for (int64_t j = L; j < padded_L; j++) row[j] = -1e30f;
    vec top = load(row), sums = splat(0);
    for (int64_t j = LANES; j < padded_L; j += LANES) top = larger(top, load(row + j));
    float highest = largest_lane(top), sum = 0;
    for (int64_t j = 0; j < padded_L; j += LANES) {
        vec weight = power_of_2(load(row + j) - highest);
        store(row + j, weight);
        sums += weight;
    }
    for (int i = 0; i < LANES; i++) sum += sums[i];
    for (int64_t j = 0; j < padded_L; j += LANES) store(row + j, load(row + j) * (1 / sum));
}

/* Give the weights that dropout removes a minus sign. The four words of a Philox number are for the weights of queries i
 * and i + 8 with keys j and j + 1, where bit 3 of i and bit 0 of j count as 0. */
static void mark_dropped(const job_t *job, uint32_t sequence, uint32_t head, int64_t L, float *weights, int64_t stride)
{
    uint32_t threshold = (uint32_t)(job->dropout_p * 4294967296.0f);
    for (int64_t i = 0; i < L; i = i % 8 == 7 ? i + 9 : i + 1)
        for (int64_t j = 0; j < L; j += 2 * LANES) {
            uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
            uint32_t key0 = (uint32_t)job->seed, key1 = (uint32_t)(job->seed >> 32);
            for (int l = 0; l < LANES; l++)
                c0[l] = (uint32_t)(j / 2 + l), c1[l] = (uint32_t)i, c2[l] = head, c3[l] = sequence;
            for (int round = 0; round < PHILOX_ROUNDS; round++, key0 += 0x9E3779B9, key1 += 0xBB67AE85)
#pragma GCC unroll 1
                for (int l = 0; l < LANES; l++) {
                    uint64_t product0 = 0xD2511F53ull * c0[l], product2 = 0xCD9E8D57ull * c2[l];
                    c0[l] = (uint32_t)(product2 >> 32) ^ c1[l] ^ key0;
                    c2[l] = (uint32_t)(product0 >> 32) ^ c3[l] ^ key1;
                    c1[l] = (uint32_t)product2, c3[l] = (uint32_t)product0;
                }
            float *row = weights + i * stride + j, *row_8 = row + 8 * stride;
            for (int l = 0; l < LANES; l++) {
                row[2 * l] *= c0[l] < threshold ? -1 : 1;
                row[2 * l + 1] *= c1[l] < threshold ? -1 : 1;
            }
            for (int l = 0; i + 8 < L && l < LANES; l++) {
                row_8[2 * l] *= c2[l] < threshold ? -1 : 1;
                row_8[2 * l + 1] *= c3[l] < threshold ? -1 : 1;
            }
        }
}

static void forward(const job_t *job, scratch_t *t, int64_t sequence, int64_t head)
{
    int64_t first = job->cu_seqlens[sequence], L = job->cu_seqlens[sequence + 1] - first, H = job->H, E = job->E;
    const float *qkv_LX = job->qkv_THXE + (first * H + head) * 3 * E;
    copy_rows(qkv_LX, 3 * H * E, L, E, job->scale * LOG2_E, t->q, t->width);
    copy_columns(qkv_LX + E, 3 * H * E, L, E, 1, t->columns, t->column_stride);
    copy_rows(qkv_LX + 2 * E, 3 * H * E, L, E, 1, t->v, t->width);
    int64_t no_distance = ROWS + job->max_length - 1;
    products(1, t, t->q, t->rel_k + no_distance, t->rel_q + no_distance, L, E, t->weights);
    for (int64_t i = 0; i < L; i++) softmax(t->weights + i * t->square_stride, L);
    if (job->dropout_p > 0) mark_dropped(job, (uint32_t)sequence, (uint32_t)head, L, t->weights, t->square_stride);
    float *kept = job->weights ? job->weights + first * H * job->max_length + head * L * L : NULL;
    for (int64_t i = 0; i < L; i++) {
        float *row = t->weights + i * t->square_stride;
        if (kept) memcpy(kept + i * L, row, 4 * (size_t)L);
        for (int64_t j = 0; job->dropout_p > 0 && j < L; j += LANES)
            store(row + j, where(~(load(row + j) < splat(0)), load(row + j)) * (1 / (1 - job->dropout_p)));
    }
    all_weighted_sums(0, t, t->weights, t->square_stride, 1, t->v, NULL, L);
    copy_rows(t->sums, t->width, L, E, 1, job->out_THE + (first * H + head) * E, H * E);
}

/* Fill t->weights with p f and t->d_scores with ds. */
static void differentiate_scores(const job_t *job, scratch_t *t, const float *kept, int64_t L)
{
    products(0, t, t->d_out, t->columns, t->columns, L, job->E, t->d_scores);
    float factor = 1 / (1 - job->dropout_p);
    for (int64_t i = 0; i < L; i++) {
        float *weights = t->weights + i * t->square_stride, *d = t->d_scores + i * t->square_stride;
        memcpy(weights, kept + i * L, 4 * (size_t)L);
        memset(weights + L, 0, 4 * LANES);
        vec sums = splat(0);
        for (int64_t j = 0; j < L; j += LANES) {
            vec weight = load(weights + j), dropped = where(~(weight < splat(0)), weight) * factor;
            sums += dropped * load(d + j);
        }
        float sum = 0;
        for (int l = 0; l < LANES; l++) sum += sums[l];
        for (int64_t j = 0; j < L; j += LANES) {
            vec weight = load(weights + j), dropped = where(~(weight < splat(0)), weight) * factor;
            vec size = (vec)((ivec)weight & 0x7fffffff);
            store(d + j, (dropped * load(d + j) - size * sum) * job->scale);
            store(weights + j, dropped);
        }
        memset(d + L, 0, 4 * (LANES + ROWS));
    }
    for (int64_t i = L; i < L + ROWS; i++) memset(t->d_scores + i * t->square_stride, 0, 4 * (size_t)(L + ROWS));
}

static void backward(const job_t *job, scratch_t *t, int64_t sequence, int64_t head)
{
    int64_t first = job->cu_seqlens[sequence], L = job->cu_seqlens[sequence + 1] - first, H = job->H, E = job->E;
    int64_t width = t->width, stride = t->square_stride, no_distance = job->max_length * width;
    const float *qkv_LX = job->qkv_THXE + (first * H + head) * 3 * E, *d = t->d_scores;
    copy_rows(qkv_LX, 3 * H * E, L, E, 1, t->q, width);
    copy_rows(qkv_LX + E, 3 * H * E, L, E, 1, t->k, width);
    copy_columns(qkv_LX + 2 * E, 3 * H * E, L, E, 1, t->columns, t->column_stride);
    copy_rows(job->d_out_THE + (first * H + head) * E, H * E, L, E, 1, t->d_out, width);
    differentiate_scores(job, t, job->weights + first * H * job->max_length + head * L * L, L);

    float *d_qkv_LX = job->d_qkv_THXE + (first * H + head) * 3 * E;
    all_weighted_sums(1, t, d, stride, 1, t->k, t->rel_k + ROWS * width + no_distance, L);
    copy_rows(t->sums, width, L, E, 1, d_qkv_LX, 3 * H * E);
    all_weighted_sums(-1, t, d, 1, stride, t->q, t->rel_q + ROWS * width + no_distance, L);
    copy_rows(t->sums, width, L, E, 1, d_qkv_LX + E, 3 * H * E);
    all_weighted_sums(0, t, t->weights, 1, stride, t->d_out, NULL, L);
    copy_rows(t->sums, width, L, E, 1, d_qkv_LX + 2 * E, 3 * H * E);
    for (int64_t r = 1 - L; r < L; r += ROWS) { /* ROWS diagonals: n is i for rel_k, j for rel_q */
        weighted_sums(0, 1, d - r, -1, stride + 1, t->q, t->q, width, ROWS, not_negative(r), smaller(L, L + r + ROWS - 1),
                      t->d_rel_k + no_distance + r * width);
        weighted_sums(0, 1, d + r * stride, stride, stride + 1, t->k, t->k, width, ROWS, not_negative(1 - r - ROWS),
                      smaller(L, L - r), t->d_rel_q + no_distance + r * width);
    }
}

/* A task is a head of every P-th sequence. */
static void *work(void *argument)
{
    job_t *job = argument;
    int64_t H = job->H, E = job->E, R = 2 * job->max_length, task;
    scratch_t t;
    if (!reserve(&t, job)) {
        __atomic_store_n(&job->out_of_memory, 1, __ATOMIC_RELAXED);
        return NULL;
    }
    while ((task = claim(&job->next_task, 1)) < H * job->P) {
        int64_t head = task % H, part = task / H;
        const float *rel_k = job->rel_k_RHE + head * E, *rel_q = job->rel_q_RHE + head * E;
        if (job->out_THE) { /* j - i ascends where r descends */
            int64_t last = (R - 1) * H * E;
            copy_columns(rel_k + last, -H * E, R, E, 1, t.rel_k + ROWS, t.table_stride);
            copy_columns(rel_q + last, -H * E, R, E, job->scale * LOG2_E, t.rel_q + ROWS, t.table_stride);
            for (int64_t b = part; b < job->B; b += job->P) forward(job, &t, b, head);
        } else {
            copy_rows(rel_k, H * E, R, E, 1, t.rel_k + ROWS * t.width, t.width);
            copy_rows(rel_q, H * E, R, E, 1, t.rel_q + ROWS * t.width, t.width);
            memset(t.d_rel_k, 0, 4 * (size_t)(R * t.width));
            memset(t.d_rel_q, 0, 4 * (size_t)(R * t.width));
            for (int64_t b = part; b < job->B; b += job->P) backward(job, &t, b, head);
            copy_rows(t.d_rel_k, t.width, R, E, 1, job->d_rel_k_PRHE + (part * R * H + head) * E, H * E);
            copy_rows(t.d_rel_q, t.width, R, E, 1, job->d_rel_q_PRHE + (part * R * H + head) * E, H * E);
        }
    }
    free(t.memory);
    return NULL;
}

/* Both passes. `out_THE` is written by the forward pass, and is NULL in the backward pass, which reads d_out_THE and the
 * weights and writes the gradients. Returns 0, or 1 where memory ran out. */
int disentangled_attention(const float *qkv_THXE, const float *rel_k_RHE, const float *rel_q_RHE, const int32_t *cu_seqlens,
                           int64_t B, int64_t H, int64_t E, int64_t max_length, int64_t P, float scale, float dropout_p,
                           int64_t seed, int64_t num_threads, float *weights, float *out_THE, const float *d_out_THE,
                           float *d_qkv_THXE, float *d_rel_k_PRHE, float *d_rel_q_PRHE)
{
    job_t job = {
        .qkv_THXE = qkv_THXE, .rel_k_RHE = rel_k_RHE, .rel_q_RHE = rel_q_RHE, .d_out_THE = d_out_THE,
        .cu_seqlens = cu_seqlens, .B = B, .H = H, .E = E, .max_length = max_length, .P = P,
        .scale = scale, .dropout_p = dropout_p, .seed = (uint64_t)seed, .weights = weights, .out_THE = out_THE,
        .d_qkv_THXE = d_qkv_THXE, .d_rel_k_PRHE = d_rel_k_PRHE, .d_rel_q_PRHE = d_rel_q_PRHE,
    };
    return !work_on_threads(work, &job, smaller(num_threads, H * P)) || job.out_of_memory;
}
