/* The operators of an integer model in plain C99: loops to read and to compare with, not to be fast.
 *
 * Tensors have five dimensions (batch, channels, depth, height, width); those that a model does not have are 1 and stand
 * in front of a linear layer's, between channels and height of an image's. Sums are int32_t; only requantize computes in
 * int64_t: M0 * 2^-n times the sums, rounded once, half to even.
 */
#ifndef FXQ_INTEGER_H
#define FXQ_INTEGER_H

#include <stddef.h>
#include <stdint.h>

#define FXQ_DIMS 5

typedef enum { FXQ_INT8, FXQ_UINT8, FXQ_INT32 } fxq_type;

typedef struct {
    fxq_type type;
    void *data;
    int shape[FXQ_DIMS];
} fxq_tensor;

static inline int32_t fxq_get(const fxq_tensor *t, size_t i) {
    switch (t->type) {
    case FXQ_INT8: return ((const int8_t *)t->data)[i];
    case FXQ_UINT8: return ((const uint8_t *)t->data)[i];
    default: return ((const int32_t *)t->data)[i];
    }
}

static inline void fxq_set(const fxq_tensor *t, size_t i, int32_t value) {
    switch (t->type) {
    case FXQ_INT8: ((int8_t *)t->data)[i] = (int8_t)value; break;
    case FXQ_UINT8: ((uint8_t *)t->data)[i] = (uint8_t)value; break;
    default: ((int32_t *)t->data)[i] = value; break;
    }
}

static inline size_t fxq_count(const fxq_tensor *t) {
    size_t count = 1;
    for (int d = 0; d < FXQ_DIMS; d++) count *= (size_t)t->shape[d];
    return count;
}

/* Where the element at `at` of the result is in `t`, whose dimensions of size 1 are read again and again. */
static inline size_t fxq_at(const fxq_tensor *t, const int at[FXQ_DIMS]) {
    size_t place = 0;
    for (int d = 0; d < FXQ_DIMS; d++) place = place * (size_t)t->shape[d] + (size_t)(t->shape[d] == 1 ? 0 : at[d]);
    return place;
}

static inline void fxq_next(const fxq_tensor *t, int at[FXQ_DIMS]) {
    for (int d = FXQ_DIMS - 1; d >= 0; d--) {
        if (++at[d] < t->shape[d]) return;
        at[d] = 0;
    }
}

/* Shifting a negative number to the right is for the compiler to define; this rounds down everywhere. */
static inline int64_t fxq_shift(int64_t value, int n) { return value >= 0 ? value >> n : ~(~value >> n); }

/* out = clamp(zero + round(sum_i (values[i] - zeros[i]) * multipliers[i] * 2^-shift), lo, hi); one multiplier and shift for
 * each index of dimension `axis`, or one for all where it is -1. */
static inline void fxq_requantize(const fxq_tensor *out, int count, const fxq_tensor *const values[], const int zeros[],
                                  const int32_t *const multipliers[], const int32_t *shift, int axis, int zero, int lo, int hi) {
    int at[FXQ_DIMS] = {0};
    for (size_t i = 0; i < fxq_count(out); i++, fxq_next(out, at)) {
        int channel = axis < 0 ? 0 : at[axis];
        int64_t total = 0;
        for (int k = 0; k < count; k++)
            total += ((int64_t)fxq_get(values[k], fxq_at(values[k], at)) - zeros[k]) * multipliers[k][channel];
        int n = shift[channel];
        int64_t half = ((int64_t)1 << (n - 1)) - 1 + (fxq_shift(total, n) & 1);
        int64_t code = fxq_shift(total + half, n) + zero;
        fxq_set(out, i, (int32_t)(code < lo ? lo : code > hi ? hi : code));
    }
}

/* Three spatial dimensions. weight: (out, in / groups, depth, height, width). pads: before each. spread: neighbours of x are
 * moved apart, with zeros in between, as a transposed convolution wants it. weight_zero: `zeros` of them, or NULL. */
static inline void fxq_conv(const fxq_tensor *out, const fxq_tensor *x, int x_zero, const fxq_tensor *weight,
                            const fxq_tensor *weight_zero, const int32_t *bias, const int stride[3], const int pads[3],
                            const int spread[3], const int dilation[3], int groups) {
    int per_group = weight->shape[1], out_per_group = weight->shape[0] / groups;
    int at[FXQ_DIMS] = {0};
    for (size_t i = 0; i < fxq_count(out); i++, fxq_next(out, at)) {
        int o = at[1];
        int32_t zero = 0, total = bias ? bias[o] : 0;
        if (weight_zero) zero = fxq_get(weight_zero, fxq_count(weight_zero) == 1 ? 0 : (size_t)o);
        for (int c = 0; c < per_group; c++) {
            int tap[3];
            for (tap[0] = 0; tap[0] < weight->shape[2]; tap[0]++)
                for (tap[1] = 0; tap[1] < weight->shape[3]; tap[1]++)
                    for (tap[2] = 0; tap[2] < weight->shape[4]; tap[2]++) {
                        int from[FXQ_DIMS] = {at[0], o / out_per_group * per_group + c, 0, 0, 0};
                        int inside = 1;
                        for (int d = 0; d < 3; d++) {
                            int place = at[2 + d] * stride[d] + tap[d] * dilation[d] - pads[d];
                            from[2 + d] = place / spread[d];
                            if (place < 0 || place % spread[d] || from[2 + d] >= x->shape[2 + d]) inside = 0;
                        }
                        if (!inside) continue; /* padded by the code of 0, which adds nothing */
                        int taken[FXQ_DIMS] = {o, c, tap[0], tap[1], tap[2]};
                        total += (fxq_get(x, fxq_at(x, from)) - x_zero) * (fxq_get(weight, fxq_at(weight, taken)) - zero);
                    }
        }
        fxq_set(out, i, total);
    }
}

/* Along dimension `dim`: weight is (rows, columns); linear layers along the last, averages along each. */
static inline void fxq_linear(const fxq_tensor *out, const fxq_tensor *x, int x_zero, const fxq_tensor *weight,
                              const fxq_tensor *weight_zero, const int32_t *bias, int columns, int dim) {
    int at[FXQ_DIMS] = {0};
    for (size_t i = 0; i < fxq_count(out); i++, fxq_next(out, at)) {
        int row = at[dim], from[FXQ_DIMS];
        int32_t zero = 0, total = bias ? bias[row] : 0;
        if (weight_zero) zero = fxq_get(weight_zero, fxq_count(weight_zero) == 1 ? 0 : (size_t)row);
        for (int d = 0; d < FXQ_DIMS; d++) from[d] = at[d];
        for (int j = 0; j < columns; j++) {
            from[dim] = j;
            total += (fxq_get(x, fxq_at(x, from)) - x_zero) * (fxq_get(weight, (size_t)row * (size_t)columns + (size_t)j) - zero);
        }
        fxq_set(out, i, total);
    }
}

static inline void fxq_mul(const fxq_tensor *out, const fxq_tensor *a, int a_zero, const fxq_tensor *b, int b_zero) {
    int at[FXQ_DIMS] = {0};
    for (size_t i = 0; i < fxq_count(out); i++, fxq_next(out, at))
        fxq_set(out, i, (fxq_get(a, fxq_at(a, at)) - a_zero) * (fxq_get(b, fxq_at(b, at)) - b_zero));
}

static inline void fxq_lookup(const fxq_tensor *out, const fxq_tensor *codes, const fxq_tensor *table, int lowest) {
    for (size_t i = 0; i < fxq_count(out); i++) fxq_set(out, i, fxq_get(table, (size_t)(fxq_get(codes, i) - lowest)));
}

static inline void fxq_max_pool(const fxq_tensor *out, const fxq_tensor *x, const int kernel[3], const int stride[3],
                                const int pads[3], const int dilation[3]) {
    int at[FXQ_DIMS] = {0};
    for (size_t i = 0; i < fxq_count(out); i++, fxq_next(out, at)) {
        int32_t best = INT32_MIN;
        int tap[3];
        for (tap[0] = 0; tap[0] < kernel[0]; tap[0]++)
            for (tap[1] = 0; tap[1] < kernel[1]; tap[1]++)
                for (tap[2] = 0; tap[2] < kernel[2]; tap[2]++) {
                    int from[FXQ_DIMS] = {at[0], at[1], 0, 0, 0};
                    int inside = 1;
                    for (int d = 0; d < 3; d++) {
                        from[2 + d] = at[2 + d] * stride[d] + tap[d] * dilation[d] - pads[d];
                        if (from[2 + d] < 0 || from[2 + d] >= x->shape[2 + d]) inside = 0;
                    }
                    if (!inside) continue;
                    int32_t value = fxq_get(x, fxq_at(x, from));
                    if (value > best) best = value;
                }
        fxq_set(out, i, best);
    }
}

/* Puts `part` into `out` from `start` on, along dimension `dim`. */
static inline void fxq_put(const fxq_tensor *out, const fxq_tensor *part, int dim, int start) {
    int at[FXQ_DIMS] = {0};
    for (size_t i = 0; i < fxq_count(part); i++, fxq_next(part, at)) {
        int to[FXQ_DIMS];
        for (int d = 0; d < FXQ_DIMS; d++) to[d] = at[d] + (d == dim ? start : 0);
        fxq_set(out, fxq_at(out, to), fxq_get(part, i));
    }
}

static inline void fxq_gather(const fxq_tensor *out, const fxq_tensor *source, const int32_t *places, int fill) {
    for (size_t i = 0; i < fxq_count(out); i++)
        fxq_set(out, i, places[i] < 0 ? fill : fxq_get(source, (size_t)places[i]));
}

#endif
