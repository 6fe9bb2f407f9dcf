/* What the kernels in C share: the compiler's vectors of floats, and threads that claim work.
 *
 * LANES is the width of the processor's vectors in float32. It can be set for a test: the compiler splits vectors that
 * are too wide for the processor. */
#ifndef VECTORS_H
#define VECTORS_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(LANES)
#elif defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }
static inline vec splat(float x) { return x - (vec){0}; }
static inline vec where(ivec mask, vec x) { return (vec)(mask & (ivec)x); } /* and 0 elsewhere */
static inline float largest_lane(vec a)
{
    float r = a[0];
    for (int i = 1; i < LANES; i++) r = a[i] > r ? a[i] : r;
    return r;
}

static inline int64_t claim(int64_t *counter, int64_t num) { return __atomic_fetch_add(counter, num, __ATOMIC_RELAXED); }

/* Call work(job) on this thread and on up to num_threads - 1 others. Where no more threads can be started, fewer do the
 * work. They never wait for each other by spinning, because on a machine with other work the thread that the others
 * wait for may not be running. Returns 0 where memory ran out. */
static inline int work_on_threads(void *(*work)(void *), void *job, int64_t num_threads)
{
    pthread_t *threads = malloc(sizeof(pthread_t) * (size_t)(num_threads > 1 ? num_threads : 1));
    if (!threads) return 0;
    int64_t num_started = 0;
    while (num_started + 1 < num_threads && pthread_create(threads + num_started, NULL, work, job) == 0) num_started++;
    work(job);
    for (int64_t i = 0; i < num_started; i++) pthread_join(threads[i], NULL);
    free(threads);
    return 1;
}

#endif
