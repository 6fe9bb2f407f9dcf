/* Non-negative lasso by coordinate descent on a working set, one signal after another, for CPUs.
 *
 * For a signal x with correlations b = D^T x and the Gram matrix G = D^T D, the solver of
 *     argmin_{a >= 0} 1/2 |x - D a|^2 + lam sum(a)
 * needs only b and G: c = b - lam - G a is the descent direction of each coordinate. A code is optimal where c <= 0 for
 * a = 0 and c = 0 for a > 0. A round of the solver
 *     1. adds the atoms with the largest c > 0 to the working set S (about ADD_AT_ONCE),
 *     2. solves the problem restricted to S by greedy coordinate descent on the gathered G_SS, which fits the L1 or L2
 *        cache (with Newton steps where that makes slow progress),
 *     3. computes c = b - lam - G a afresh for all K atoms from the support's rows of G, and from c the duality gap.
 * Step 3 is the certificate: it uses the code that is returned, and no value that was updated in place.
 *
 * Each signal is computed in an order of its own, b included (so b is not left to a BLAS): the result is the same to
 * the last bit whatever the batch, the place in it and the number of threads.
 * results/lasso-designs.md has the costs of the steps, and the designs that lost.
 *
 * Shapes: N signals, D their dimension, K atoms, M atoms in the working set. All matrices row-major and contiguous.
 * Stored and computed in float32; sums that decide about stopping are accumulated in float64.
 */
#include <float.h>
#include <math.h>
#include <sched.h>
#include <string.h>

#include "vectors.h"

#if defined(__AVX512F__) || defined(__aarch64__) /* 32 vector registers */
#define TILE_ROWS 8 /* 8 x 2 accumulators */
#else               /* 16 */
#define TILE_ROWS 4
#endif
#define TILE_COLUMNS (2 * LANES)

/* Measured at D 384, K 1500 on an AMD EPYC (Zen 4). Other values nearby are as fast. */
#define COPY_FROM 64        /* signals; with fewer, copying the dictionary into tiles takes longer than it saves */
#define SIGNALS_AT_ONCE 32  /* signals that share a pass over the dictionary; their b takes 192 KB at K 1500 */
#define ADD_AT_ONCE 32      /* atoms that join the working set in a round */
#define ADD_SHARE 0.1f      /* of the largest violation; smaller ones wait, and most vanish without an update */
#define ROUND_SHARE 0.02f   /* of the largest violation at the start of a round: where step 2 stops */
#define UPDATES_TO_NEWTON 4 /* times M; few signals need more in a round; doubles when a Newton step is cut short */
#define ATOMS_AT_FIRST 256  /* capacity of a thread's G_SS; doubles when a signal needs more */
#define MAX_ROUNDS 200      /* only a tolerance below the resolution of float32 takes so many */

static inline vec largest(vec a, vec b)
{
    vec r;
    for (int i = 0; i < LANES; i++) r[i] = a[i] > b[i] ? a[i] : b[i];
    return r;
}
/* All bits of a lane are set where it is NaN or infinite. The exponent says so: the compiler may assume that floats are
 * finite (-ffinite-math-only, without which maxima take twice the instructions) and would remove other tests. */
static inline ivec not_finite(vec a) { return ((ivec)a & 0x7f800000) == 0x7f800000; }
static inline ivec larger(ivec a, ivec b)
{
    ivec r;
    for (int i = 0; i < LANES; i++) r[i] = a[i] > b[i] ? a[i] : b[i];
    return r;
}
/* Rows of G, readable up to a whole number of tiles. Past its end a row reads the start of the next row, into padding
 * that no maximum includes. The last rows, which have no next row, are copies. */
typedef struct {
    const float *gram_KK, *copied;
    int64_t K, padded_K, num_in_place;
} gram_t;

static inline const float *gram_row(const gram_t *g, int64_t j)
{
    return j < g->num_in_place ? g->gram_KK + j * g->K : g->copied + (j - g->num_in_place) * g->padded_K;
}

/* What a thread owns. Arrays named _M follow the order in which atoms joined the working set. */
typedef struct {
    float *signals, *b, *c;
    int32_t *place_K, *candidates;
    int64_t capacity;
    int32_t *atom_M;
    float *gram_MM, *c_M, *a_M, *diagonal_M, *inverse_M;
    /* For the F <= M members that are not zero. */
    int32_t *member_F;
    int64_t newton_wait; /* updates, times M, of this signal */
    int32_t index_bits;  /* of the index of a member */
    float *factor_FF, *step_F, *change_M;
} scratch_t;

static void *allocate(int64_t num_floats)
{
    void *p;
    return posix_memalign(&p, 64, 4 * (size_t)(num_floats + 2 * TILE_COLUMNS)) ? NULL : p;
}

/* Not a power of two, so that rows do not share cache sets. */
static inline int64_t gram_stride(int64_t capacity) { return capacity + LANES; }

static int reserve_working_set(scratch_t *t, int64_t capacity)
{
    free(t->gram_MM), free(t->factor_FF);
    t->gram_MM = allocate(capacity * gram_stride(capacity));
    t->factor_FF = allocate(capacity * gram_stride(capacity));
    float **arrays[] = {&t->c_M,    &t->a_M,      &t->diagonal_M, &t->inverse_M, (float **)&t->atom_M,
                        &t->step_F, &t->change_M, (float **)&t->member_F};
    for (int i = 0; i < 8; i++) {
        float *larger = allocate(capacity + LANES);
        if (!larger) return 0;
        if (*arrays[i]) memcpy(larger, *arrays[i], 4 * (size_t)t->capacity);
        free(*arrays[i]);
        *arrays[i] = larger;
    }
    t->capacity = capacity;
    return t->gram_MM && t->factor_FF;
}

static int reserve(scratch_t *t, int64_t at_once, int64_t D, int64_t padded_K)
{
    memset(t, 0, sizeof *t);
    t->signals = allocate(at_once * D);
    t->b = allocate(at_once * padded_K);
    t->c = allocate(padded_K);
    t->place_K = allocate(padded_K);
    t->candidates = allocate(padded_K);
    if (!t->signals || !t->b || !t->c || !t->place_K || !t->candidates) return 0;
    for (int64_t j = 0; j < padded_K; j++) t->place_K[j] = -1;
    return reserve_working_set(t, ATOMS_AT_FIRST);
}

static void release(scratch_t *t)
{
    free(t->signals), free(t->b), free(t->c), free(t->place_K), free(t->candidates);
    free(t->atom_M), free(t->gram_MM), free(t->c_M), free(t->a_M), free(t->diagonal_M), free(t->inverse_M);
    free(t->member_F), free(t->factor_FF), free(t->step_F), free(t->change_M);
}

/* b (rows x TILE_COLUMNS) = products of a few signals with TILE_COLUMNS atoms. The signals are interleaved (D x rows);
 * row d of the atoms starts at d * stride. Every b is summed in the order of d, whatever `rows` is. */
static inline __attribute__((always_inline)) void correlate_rows(int rows, const float *restrict signals,
                                                                 const float *restrict atoms, int64_t stride, int64_t D,
                                                                 float *restrict b, int64_t b_stride)
{
    vec sum[TILE_ROWS][2];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < 2; v++) sum[i][v] = splat(0);
    for (int64_t d = 0; d < D; d++) {
        const float *p = atoms + d * stride;
        vec p0 = load(p), p1 = load(p + LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            vec x = splat(signals[d * rows + i]);
            sum[i][0] += x * p0;
            sum[i][1] += x * p1;
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < 2; v++) store(b + i * b_stride + v * LANES, sum[i][v]);
}

static void correlate_tile(int rows, const float *signals, const float *atoms, int64_t stride, int64_t D, float *b,
                           int64_t b_stride)
{
    if (rows == 1)
        correlate_rows(1, signals, atoms, stride, D, b, b_stride);
    else if (rows == 2)
        correlate_rows(2, signals, atoms, stride, D, b, b_stride);
    else
        correlate_rows(TILE_ROWS, signals, atoms, stride, D, b, b_stride);
}

/* The dictionary as tiles of TILE_COLUMNS atoms: copied, contiguous tiles for many signals; for few, where the copies
 * would cost more than they save, only the last tile, which is filled up with zeros. */
typedef struct {
    const float *dictionary_DK;
    float *copies;
    int64_t first_copied; /* atom */
} tiles_t;

static void correlate(const float *signals_ND, int64_t num, int64_t D, const tiles_t *tiles, int64_t K,
                      int64_t padded_K, scratch_t *t)
{
    int rows = num <= 2 ? (int)num : TILE_ROWS; /* of a group; the last group is filled up with zeros */
    int64_t num_groups = (num + rows - 1) / rows;
    for (int64_t g = 0; g < num_groups; g++)
        for (int64_t i = 0; i < rows; i++) {
            int64_t n = g * rows + i;
            for (int64_t d = 0; d < D; d++) t->signals[(g * D + d) * rows + i] = n < num ? signals_ND[n * D + d] : 0;
        }
    for (int64_t column = 0; column < padded_K; column += TILE_COLUMNS) {
        int is_copied = column >= tiles->first_copied;
        const float *atoms =
            is_copied ? tiles->copies + (column - tiles->first_copied) * D : tiles->dictionary_DK + column;
        for (int64_t g = 0; g < num_groups; g++)
            correlate_tile(rows, t->signals + g * D * rows, atoms, is_copied ? TILE_COLUMNS : K, D,
                           t->b + g * rows * padded_K + column, padded_K);
    }
}

/* Step 3: c = b - lam - G a over all atoms, four rows of G a pass. Gives the largest c, and returns whether all c are
 * finite. */
static int descent_direction(const gram_t *g, const float *b, float lam, int64_t M, scratch_t *t, float *largest_c)
{
    float *restrict c = t->c;
    vec top = splat(-FLT_MAX);
    ivec bad = {0};
    for (int64_t j = 0; j < g->padded_K; j += LANES) {
        vec v = load(b + j) - lam;
        store(c + j, v);
        top = largest(top, v);
        bad |= not_finite(v);
    }
    for (int64_t s = 0; s < M;) {
        const float *row[4];
        float a[4] = {0};
        int num = 0;
        for (; s < M && num < 4; s++)
            if (t->a_M[s] > 0) row[num] = gram_row(g, t->atom_M[s]), a[num++] = t->a_M[s];
        if (!num) break;
        for (int i = num; i < 4; i++) row[i] = row[0];
        top = splat(-FLT_MAX);
        for (int64_t j = 0; j < g->padded_K; j += LANES) {
            vec v = load(c + j) - a[0] * load(row[0] + j) - a[1] * load(row[1] + j) - a[2] * load(row[2] + j) -
                    a[3] * load(row[3] + j);
            store(c + j, v);
            top = largest(top, v);
            bad |= not_finite(v);
        }
    }
    *largest_c = largest_lane(top);
    int32_t any = 0;
    for (int i = 0; i < LANES; i++) any |= bad[i];
    return !any;
}

static int64_t count_above(int64_t K, float threshold, const float *c)
{
    ivec num = {0};
    vec threshold_vec = splat(threshold);
    for (int64_t j = 0; j < K; j += LANES) num -= load(c + j) > threshold_vec;
    int64_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += num[i];
    return sum;
}

/* Step 1: atoms outside S with c above a share of the largest; if they are more than ADD_AT_ONCE, about as many. */
static int64_t pick(int64_t K, float top, scratch_t *t)
{
    float low = ADD_SHARE * top, high = top;
    int64_t above = count_above(K, low, t->c);
    for (int i = 0; above > ADD_AT_ONCE && i < 8; i++) {
        float middle = 0.5f * (low + high);
        int64_t above_middle = count_above(K, middle, t->c);
        if (above_middle < ADD_AT_ONCE * 3 / 4)
            high = middle;
        else
            low = middle, above = above_middle;
    }
    int64_t num = 0;
    for (int64_t block = 0; block < K; block += LANES) {
        const float *c = t->c + block;
        if (largest_lane(load(c)) <= low) continue;
        for (int j = 0; j < LANES; j++) {
            t->candidates[num] = (int32_t)(block + j);
            num += (c[j] > low) & (t->place_K[block + j] < 0);
        }
    }
    return num < 2 * ADD_AT_ONCE ? num : 2 * ADD_AT_ONCE;
}

/* Fill G_SS for the members from `have` on. */
static void gather(const gram_t *g, int64_t have, int64_t M, scratch_t *t)
{
    int64_t stride = gram_stride(t->capacity);
    for (int64_t s = have; s < M; s++) {
        const float *row = gram_row(g, t->atom_M[s]);
        float *out = t->gram_MM + s * stride;
        for (int64_t q = 0; q <= s; q++) out[q] = row[t->atom_M[q]];
        for (int64_t q = 0; q < s; q++) t->gram_MM[q * stride + s] = out[q];
        t->diagonal_M[s] = out[s];
        t->inverse_M[s] = out[s] > 0 ? 1 / out[s] : 0;
    }
}

/* Newton's step for the F members that are not zero: p = G_FF^-1 c_F by elimination, then a += t p with the t that is
 * best on the line, or the smaller t that brings the first member to zero. Where atoms are coherent (many more of them
 * than dimensions, a small lambda) coordinate descent needs thousands of updates, and this step replaces them.
 * Returns whether the step was whole. */
static int newton(int64_t M, scratch_t *t)
{
    int64_t stride = gram_stride(t->capacity), F = 0;
    float *restrict p = t->step_F, *restrict factor = t->factor_FF, *restrict change = t->change_M;
    for (int64_t s = 0; s < M; s++)
        if (t->a_M[s] > 0) t->member_F[F++] = (int32_t)s;
    for (int64_t i = 0; i < F; i++) {
        const float *row = t->gram_MM + t->member_F[i] * stride;
        for (int64_t j = i; j < F; j++) factor[i * stride + j] = row[t->member_F[j]];
        p[i] = t->c_M[t->member_F[i]];
    }
    for (int64_t k = 0; k < F; k++) { /* G = U^T diag(U)^-1 U, rows of U in place; p eliminated along */
        const float *pivot_row = factor + k * stride;
        if (!(pivot_row[k] > 1e-5f * t->diagonal_M[t->member_F[k]])) return 0; /* dependent atoms */
        for (int64_t i = k + 1; i < F; i++) {
            float share = pivot_row[i] / pivot_row[k];
            float *restrict row = factor + i * stride;
            for (int64_t j = i; j < F; j++) row[j] -= share * pivot_row[j];
            p[i] -= share * p[k];
        }
    }
    for (int64_t k = F - 1; k >= 0; k--) {
        float rest = p[k];
        for (int64_t j = k + 1; j < F; j++) rest -= factor[k * stride + j] * p[j];
        p[k] = rest / factor[k * stride + k];
    }
    for (int64_t s = 0; s < M; s += LANES) store(change + s, splat(0));
    double gain = 0, curvature = 0;
    for (int64_t i = 0; i < F; i++) {
        const float *row = t->gram_MM + t->member_F[i] * stride;
        for (int64_t q = 0; q < M; q += LANES) store(change + q, load(change + q) + p[i] * load(row + q));
        gain += (double)p[i] * t->c_M[t->member_F[i]];
    }
    for (int64_t i = 0; i < F; i++) curvature += (double)p[i] * change[t->member_F[i]];
    if (!(gain > 0 && curvature > 0)) return 0;
    float length = (float)(gain / curvature);
    int64_t first_to_zero = -1;
    for (int64_t i = 0; i < F; i++) {
        float a = t->a_M[t->member_F[i]];
        if (a + length * p[i] < 0) length = -a / p[i], first_to_zero = t->member_F[i];
    }
    for (int64_t i = 0; i < F; i++) {
        float after = t->a_M[t->member_F[i]] + length * p[i];
        t->a_M[t->member_F[i]] = after > 0 ? after : 0;
    }
    if (first_to_zero >= 0) t->a_M[first_to_zero] = 0;
    for (int64_t q = 0; q < M; q += LANES) store(t->c_M + q, load(t->c_M + q) - length * load(change + q));
    return first_to_zero < 0;
}

/* a_s += change and c -= change G_s. Returns the member with the largest violation max(c, -G_jj a): what is left to
 * gain, or what can be taken away. One maximum finds it, because its index replaces the low bits of each violation. */
static inline int32_t update_and_search(int32_t s, float change, int64_t M, scratch_t *t, float *violation)
{
    const float *row = t->gram_MM + s * gram_stride(t->capacity);
    const int32_t index_bits = t->index_bits;
    ivec lane, best = {0};
    for (int i = 0; i < LANES; i++) lane[i] = i;
    for (int64_t q = 0; q < M; q += LANES) {
        vec c = load(t->c_M + q) - change * load(row + q);
        vec a = load(t->a_M + q) + (vec)((lane == s - (int32_t)q) & (ivec)splat(change));
        store(t->c_M + q, c);
        store(t->a_M + q, a);
        ivec size = (ivec)largest(c, -a * load(t->diagonal_M + q)) & (0x7fffffff & ~index_bits);
        best = larger(best, (size | (lane + (int32_t)q)) & (lane < (int32_t)(M - q)));
    }
    int32_t top = best[0];
    for (int i = 1; i < LANES; i++) top = best[i] > top ? best[i] : top;
    int32_t size = top & ~index_bits;
    memcpy(violation, &size, 4);
    return top & index_bits;
}

/* Step 2: greedy coordinate descent on S until no violation is above eps. Returns the number of updates. */
static int64_t descend(int64_t M, float eps, int64_t max_updates, scratch_t *t)
{
    int64_t num_updates = 0, next_newton = t->newton_wait * M;
    float violation;
    for (t->index_bits = 1; t->index_bits < M; t->index_bits = 2 * t->index_bits + 1) {}
    int32_t s = update_and_search(0, 0, M, t, &violation);
    while (violation > eps && num_updates < max_updates) {
        float change = 0;
        if (num_updates == next_newton) {
            t->newton_wait *= newton(M, t) ? 1 : 2;
            next_newton += t->newton_wait * M;
        } else {
            float before = t->a_M[s], loss = -before * t->diagonal_M[s];
            float after = before + (t->c_M[s] > loss ? t->c_M[s] : loss) * t->inverse_M[s];
            change = (after > 0 ? after : 0) - before;
            if (change == 0) break; /* less than float32 resolves, or a Gram matrix that overflowed */
            num_updates++;
        }
        s = update_and_search(s, change, M, t, &violation);
    }
    return num_updates;
}

/* One signal. Returns 0 where memory ran out. The gap is NaN where the signal, an atom or a row of G is not finite. */
static int solve(const gram_t *g, float *b, float squared_norm, float lam, float tol, int64_t max_updates, scratch_t *t,
                 float *restrict code_K, float *gap, int32_t *num_steps)
{
    int64_t K = g->K, M = 0, gathered = 0, updates = 0;
    float target = tol * 0.5f * squared_norm;
    for (int64_t j = K; j < g->padded_K; j++) b[j] = -1e30f; /* never a maximum */
    float top, top_b = 0;
    t->newton_wait = UPDATES_TO_NEWTON;
    for (int round = 0;; round++) {
        if (!descent_direction(g, b, lam, M, t, &top)) {
            *gap = NAN;
            break;
        }
        if (!round) top_b = top + lam;
        /* The gap, as in reference.duality_gap: d_j.r = c_j + lam, and |r|^2 = |x|^2 - a.(b + D^T r). */
        double scale = top > 0 ? lam / ((double)lam + top) : 1, explained = 0, slack = 0, sum = 0;
        float violation = top > 0 ? top : 0;
        for (int64_t s = 0; s < M; s++) {
            double a = t->a_M[s];
            if (a <= 0) continue;
            int64_t j = t->atom_M[s];
            sum += a;
            explained += a * ((double)b[j] + t->c[j] + lam);
            slack += a * (lam - scale * ((double)t->c[j] + lam));
            float excess = -t->c[j] < t->a_M[s] * t->diagonal_M[s] ? -t->c[j] : t->a_M[s] * t->diagonal_M[s];
            violation = excess > violation ? excess : violation;
        }
        double residual = squared_norm > explained ? squared_norm - explained : 0;
        double g_ap = 0.5 * (1 - scale) * (1 - scale) * residual + slack;
        *gap = g_ap > 0 ? (float)g_ap : 0;
        if (*gap <= target || updates >= max_updates || round == MAX_ROUNDS) break;

        int64_t num_new = top > 0 ? pick(K, top, t) : 0;
        if (M + num_new > t->capacity) { /* drop members that are zero; if that is not enough, double the capacity */
            int64_t kept = 0;
            for (int64_t s = 0; s < M; s++) {
                t->place_K[t->atom_M[s]] = t->a_M[s] > 0 ? (int32_t)kept : -1;
                if (t->a_M[s] > 0) t->atom_M[kept] = t->atom_M[s], t->a_M[kept++] = t->a_M[s];
            }
            M = kept, gathered = 0;
            if (M + num_new > t->capacity / 2 && !reserve_working_set(t, 2 * t->capacity)) return 0;
        }
        for (int64_t i = 0; i < num_new; i++) {
            t->place_K[t->candidates[i]] = (int32_t)M;
            t->atom_M[M] = t->candidates[i];
            t->a_M[M++] = 0;
        }
        gather(g, gathered, M, t);
        gathered = M;
        for (int64_t s = 0; s < M; s++) t->c_M[s] = t->c[t->atom_M[s]];
        /* A violation of eps everywhere costs a gap of about 2 eps sum(a) + (eps / lam)^2 |r|^2 / 2. Step 2 stops at
         * the eps that the target allows, or at what float32 resolves. */
        double needed = 0.5 * lam * sqrt(target / (residual + 1e-30));
        if (sum > 0 && needed > 0.25 * target / sum) needed = 0.25 * target / sum;
        float eps = ROUND_SHARE * violation, resolution = FLT_EPSILON * (lam + (top_b > 0 ? top_b : 0));
        eps = eps > needed ? eps : (float)needed;
        updates += descend(M, eps > resolution ? eps : resolution, max_updates - updates, t);
    }
    memset(code_K, 0, 4 * (size_t)K);
    for (int64_t s = 0; s < M; s++) {
        code_K[t->atom_M[s]] = t->a_M[s];
        if (not_finite(splat(t->a_M[s]))[0]) *gap = NAN;
        t->place_K[t->atom_M[s]] = -1;
    }
    *num_steps = (int32_t)updates;
    return 1;
}

/* What the threads of a call share. They claim work by counters. */
typedef struct {
    const float *signals_ND, *lam_N;
    gram_t gram;
    tiles_t tiles;
    float tol;
    int64_t max_updates, N, D, at_once;
    float *codes_NK, *gap_N;
    int32_t *steps_N;
    int64_t next_column, columns_done, next_signal; /* atomic */
    int out_of_memory;                              /* atomic */
} job_t;

static void copy_tile(const job_t *job, int64_t column)
{
    int64_t K = job->gram.K, width = K - column < TILE_COLUMNS ? K - column : TILE_COLUMNS;
    float *out = job->tiles.copies + (column - job->tiles.first_copied) * job->D;
    for (int64_t d = 0; d < job->D; d++, out += TILE_COLUMNS) {
        memcpy(out, job->tiles.dictionary_DK + d * K + column, 4 * (size_t)width);
        memset(out + width, 0, 4 * (size_t)(TILE_COLUMNS - width));
    }
}

static float squared_norm(const float *x, int64_t D)
{
    double sums[LANES] = {0}, sum = 0; /* several, so that the compiler may vectorise them */
    int64_t d = 0;
    for (; d + LANES <= D; d += LANES)
        for (int i = 0; i < LANES; i++) sums[i] += (double)x[d + i] * x[d + i];
    for (; d < D; d++) sum += (double)x[d] * x[d];
    for (int i = 0; i < LANES; i++) sum += sums[i];
    return (float)sum;
}

static void *work(void *argument)
{
    job_t *job = argument;
    int64_t D = job->D, K = job->gram.K, padded_K = job->gram.padded_K, column, first;
    while ((column = claim(&job->next_column, TILE_COLUMNS)) < padded_K) {
        copy_tile(job, column);
        __atomic_fetch_add(&job->columns_done, TILE_COLUMNS, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(&job->columns_done, __ATOMIC_ACQUIRE) < padded_K) sched_yield();

    scratch_t t;
    int enough = reserve(&t, job->at_once, D, padded_K);
    while (enough && (first = claim(&job->next_signal, job->at_once)) < job->N) {
        int64_t num = job->N - first < job->at_once ? job->N - first : job->at_once;
        correlate(job->signals_ND + first * D, num, D, &job->tiles, K, padded_K, &t);
        for (int64_t n = first; enough && n < first + num; n++) {
            float energy = squared_norm(job->signals_ND + n * D, D);
            enough = solve(&job->gram, t.b + (n - first) * padded_K, energy, job->lam_N[n], job->tol,
                           job->max_updates, &t, job->codes_NK + n * K, job->gap_N + n, job->steps_N + n);
        }
    }
    release(&t);
    if (!enough) __atomic_store_n(&job->out_of_memory, 1, __ATOMIC_RELAXED);
    return NULL;
}

/* Returns 0, or 1 where memory ran out. */
int nonneg_lasso_descent(const float *signals_ND, const float *dictionary_DK, const float *gram_KK, const float *lam_N,
                         float tol, int64_t max_updates, int num_threads, int64_t N, int64_t D, int64_t K,
                         float *codes_NK, float *gap_N, int32_t *steps_N)
{
    int64_t padded_K = (K + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS;
    int64_t num_copied = (padded_K - K + K - 1) / K;
    num_copied = num_copied < K ? num_copied : K;
    int64_t first_tile_copied = N > COPY_FROM ? 0 : padded_K == K ? K : padded_K - TILE_COLUMNS;
    float *copies = allocate(D * (padded_K - first_tile_copied)), *copied = allocate(num_copied * padded_K);
    int failed = !copies || !copied;
    if (!failed) {
        memset(copied, 0, 4 * (size_t)(num_copied * padded_K));
        for (int64_t i = 0; i < num_copied; i++)
            memcpy(copied + i * padded_K, gram_KK + (K - num_copied + i) * K, 4 * (size_t)K);
        /* One thread takes as many as share a pass over the dictionary; several take fewer, so that all have work. */
        int64_t at_once = (num_threads > 1 ? N / (4 * num_threads) : N) / TILE_ROWS * TILE_ROWS + TILE_ROWS;
        job_t job = {
            .signals_ND = signals_ND, .lam_N = lam_N,
            .gram = {gram_KK, copied, K, padded_K, K - num_copied},
            .tiles = {dictionary_DK, copies, first_tile_copied},
            .tol = tol, .max_updates = max_updates, .N = N, .D = D,
            .at_once = at_once < SIGNALS_AT_ONCE ? at_once : SIGNALS_AT_ONCE,
            .codes_NK = codes_NK, .gap_N = gap_N, .steps_N = steps_N,
            .next_column = first_tile_copied, .columns_done = first_tile_copied,
        };
        int64_t num_portions = (N + job.at_once - 1) / job.at_once;
        failed = !work_on_threads(work, &job, num_threads < num_portions ? num_threads : num_portions) || job.out_of_memory;
    }
    free(copies), free(copied);
    return failed;
}
