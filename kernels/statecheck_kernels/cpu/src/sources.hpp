// Where wkv6 and ssd take the operands of their memory from, and where its gradients go.

// `count` numbers of one step, then zeros up to `width`.
template <typename T>
INLINE void copy_row(const View& from, int64_t b, int64_t t, int64_t h, T* to, int64_t count, int64_t width) {
    const T* at = from.at<T>(b, t, h);
    if (from.stride[3] == 1) std::memcpy(to, at, count * sizeof(T));
    else
        for (int64_t i = 0; i < count; ++i) to[i] = at[i * from.stride[3]];
    for (int64_t i = count; i < width; ++i) to[i] = 0;
}

template <typename T>
INLINE void expect_row(const View& from, int64_t b, int64_t t, int64_t h, int64_t count, Wanted& wanted) {
    if (from.stride[3] == 1) wanted.add(from.at<T>(b, t, h), count);
}

template <typename T>
INLINE void write_row(const View& to, int64_t b, int64_t t, int64_t h, const T* from, int64_t count) {
    T* at = to.at<T>(b, t, h);
    if (to.stride[3] == 1) std::memcpy(at, from, count * sizeof(T));
    else
        for (int64_t i = 0; i < count; ++i) at[i * to.stride[3]] = from[i];
}

template <typename T>
INLINE T dot(const T* a, const T* b, int64_t width) {
    Vec<T> total{};
    for (int64_t i = 0; i < width; i += LANES<T>) total += load(a + i) * load(b + i);
    return sum<T>(total);
}

template <typename T>
INLINE void add_to_row(const View& to, int64_t b, int64_t t, int64_t h, const T* from, int64_t count) {
    T* at = to.at<T>(b, t, h);
    for (int64_t i = 0; i < count; ++i) at[i * to.stride[3]] += from[i];
}

// Whether all numbers of a row, padded with zeros, are finite: 0 times anything else is NaN.
template <typename T>
INLINE bool finite(const T* row, int64_t width) {
    Vec<T> zeros{};
    for (int64_t i = 0; i < width; i += LANES<T>) zeros += load(row + i) * Vec<T>{};
    return sum<T>(zeros) == 0;
}

// y += factor * x over whole vectors.
template <typename T>
INLINE void add_scaled(T* y, const T* x, T factor, int64_t width) {
    for (int64_t i = 0; i < width; i += LANES<T>) store(y + i, load(y + i) + spread(factor) * load(x + i));
}

// What both have. Views are (row, step, head, channel); of states (sequence, head, K, V).
struct Outer {
    Sequences sequences;
    Shape shape;
    Statistics statistics;
    View initial, final, d_final, d_initial;
    void* checkpoints;  // (chunks of all sequences, H, K, V), or null
    View y, dy;

    int64_t row(int64_t s) const { return sequences.row(s); }
    template <typename T>
    int64_t time(const Chunk<T>& c, int64_t t) const {
        return sequences.start(c.s) + c.first + t;
    }
    template <typename T>
    void write_answers(const Chunk<T>& c) const {
        for (int64_t t = 0; t < c.steps; ++t) write_row(y, row(c.s), time(c, t), c.h, c.y + t * c.wide_v, shape.V);
    }
    template <typename T>
    void expect_answers(const Chunk<T>& c, Wanted& wanted) const {
        for (int64_t t = 0; t < c.steps; ++t) expect_row<T>(y, row(c.s), time(c, t), c.h, shape.V, wanted);
    }
    template <typename T>
    void pack_gradient(const Chunk<T>& c, const Gradients<T>& g) const {
        for (int64_t t = 0; t < c.steps; ++t)
            copy_row(dy, row(c.s), time(c, t), c.h, g.dy + t * c.wide_v, shape.V, c.wide_v);
    }
};

// Of RWKV-6: y_t = r_t (S_t-1 + diag(u) k_t^T v_t).
struct Wkv6 : Outer {
    View r, k, v, log_w, u;              // u (0, 0, head, channel)
    View d_r, d_k, d_v, d_log_w, d_u;    // d_u (sequence, 0, head, channel)

    template <typename T>
    void begin(const Chunk<T>& c) const {
        copy_row(u, 0, 0, c.h, c.bonus, shape.K, c.wide_k);
    }
    template <typename T>
    void finish(const Chunk<T>& c) const {
        write_row(d_u, c.s, 0, c.h, c.d_bonus, shape.K);
    }

    template <typename T>
    void pack(const Chunk<T>& c) const {
        for (int64_t t = 0; t < c.steps; ++t) {
            const int64_t b = row(c.s), at = time(c, t);
            copy_row(r, b, at, c.h, c.r + t * c.wide_k, shape.K, c.wide_k);
            copy_row(k, b, at, c.h, c.k + t * c.wide_k, shape.K, c.wide_k);
            copy_row(log_w, b, at, c.h, c.w + t * c.wide_k, shape.K, c.wide_k);
            copy_row(v, b, at, c.h, c.v + t * c.wide_v, shape.V, c.wide_v);
        }
        for (int64_t i = 0; i < c.steps * c.wide_k; i += LANES<T>) store(c.w + i, exp_of(load(c.w + i)));
    }

    template <typename T>
    void expect(const Chunk<T>& c, Wanted& wanted) const {
        for (int64_t t = 0; t < c.steps; ++t) {
            for (const View* from : {&r, &k, &log_w}) expect_row<T>(*from, row(c.s), time(c, t), c.h, shape.K, wanted);
            expect_row<T>(v, row(c.s), time(c, t), c.h, shape.V, wanted);
        }
    }
    template <typename T>
    void expect_gradients(const Chunk<T>& c, Wanted& wanted) const {
        for (int64_t t = 0; t < c.steps; ++t) {
            for (const View* to : {&d_r, &d_k, &d_log_w}) expect_row<T>(*to, row(c.s), time(c, t), c.h, shape.K, wanted);
            expect_row<T>(d_v, row(c.s), time(c, t), c.h, shape.V, wanted);
        }
    }

    // r_t . u . k_t, what the present counts for.
    template <typename T>
    T present(const Chunk<T>& c, int64_t t) const {
        Vec<T> total{};
        for (int64_t i = 0; i < c.wide_k; i += LANES<T>)
            total += load(c.r + t * c.wide_k + i) * load(c.bonus + i) * load(c.k + t * c.wide_k + i);
        return sum<T>(total);
    }

    template <typename T>
    void own_answers(const Chunk<T>& c) const {
        for (int64_t t = 0; t < c.steps; ++t) {
            const T share = present(c, t);
            T *y_t = c.y + t * c.wide_v, *v_t = c.v + t * c.wide_v;
            if (!std::isfinite(share) || !finite(v_t, c.wide_v)) {
                as_written(c, t);
                continue;
            }
            for (int64_t j = 0; j < c.wide_v; j += LANES<T>) store(y_t + j, spread(share) * load(v_t + j));
        }
    }

    // The sums in the order of the formula, where another order is infinite or NaN and that is not.
    template <typename T>
    void as_written(const Chunk<T>& c, int64_t t) const {
        const T *r_t = c.r + t * c.wide_k, *k_t = c.k + t * c.wide_k;
        for (int64_t j = 0; j < shape.V; ++j) {
            T total = 0;
            for (int64_t i = 0; i < shape.K; ++i) total += r_t[i] * (c.bonus[i] * (k_t[i] * c.v[t * c.wide_v + j]));
            c.y[t * c.wide_v + j] = total;
        }
    }

    template <typename T>
    void write_gradients(const Chunk<T>& c, const Gradients<T>& g) const {
        T* d_bonus = c.d_bonus;
        for (int64_t t = 0; t < c.steps; ++t) {
            const int64_t b = row(c.s), at = time(c, t);
            T *dr = g.dr + t * c.wide_k, *dk = g.dk + t * c.wide_k, *dv = g.dv + t * c.wide_v;
            const T *r_t = c.r + t * c.wide_k, *k_t = c.k + t * c.wide_k;
            add_scaled(dv, g.dy + t * c.wide_v, present(c, t), c.wide_v);
            const T share = dot(c.v + t * c.wide_v, g.dy + t * c.wide_v, c.wide_v);
            for (int64_t i = 0; i < c.wide_k; i += LANES<T>) {
                const Vec<T> r_i = load(r_t + i) * spread(share), k_i = load(k_t + i) * spread(share);
                store(dr + i, load(dr + i) + load(c.bonus + i) * k_i);
                store(dk + i, load(dk + i) + load(c.bonus + i) * r_i);
                store(d_bonus + i, load(d_bonus + i) + load(r_t + i) * k_i);
            }
            write_row(d_r, b, at, c.h, dr, shape.K);
            write_row(d_k, b, at, c.h, dk, shape.K);
            write_row(d_v, b, at, c.h, dv, shape.V);
            write_row(d_log_w, b, at, c.h, g.dlog_w + t * c.wide_k, shape.K);
        }
    }
};

// Of Mamba-2, with K = N and V = P: y_t = C_t (a_t S_t-1 + B_t^T (dt_t x_t)) + D x_t, a_t = exp(dt_t A). So r_t is a_t C_t.
struct Ssd : Outer {
    int64_t groups;
    int64_t parts;  // of the heads of a group, for the gradients of B and C: one after the other they add to theirs
    View x, dt, A, B, C, D;                    // dt (row, step, head); A, D (head); B, C (row, step, group, channel)
    View d_x, d_dt, d_A, d_B, d_C, d_D;        // d_B, d_C by part; d_A, d_D (sequence, head)

    template <typename T>
    void begin(const Chunk<T>&) const {}
    template <typename T>
    void finish(const Chunk<T>&) const {}

    template <typename T>
    void expect(const Chunk<T>& c, Wanted& wanted) const {
        for (int64_t t = 0; t < c.steps; ++t) {
            const int64_t b = row(c.s), at = time(c, t);
            for (const View* from : {&B, &C}) expect_row<T>(*from, b, at, group(c.h), shape.K, wanted);
            expect_row<T>(x, b, at, c.h, shape.V, wanted);
        }
    }
    template <typename T>
    void expect_gradients(const Chunk<T>& c, Wanted& wanted) const {
        for (int64_t t = 0; t < c.steps; ++t) {
            const int64_t b = row(c.s), at = time(c, t);
            for (const View* to : {&d_B, &d_C}) expect_row<T>(*to, b, at, part(c.h), shape.K, wanted);
            expect_row<T>(d_x, b, at, c.h, shape.V, wanted);
        }
    }

    int64_t group(int64_t h) const { return h / (shape.heads / groups); }
    int64_t heads_of_part() const { return shape.heads / groups / parts; }
    int64_t part(int64_t h) const { return h / heads_of_part(); }
    template <typename T>
    T* decay(const Chunk<T>& c) const { return c.scalars; }
    template <typename T>
    T* size(const Chunk<T>& c) const { return c.scalars + c.chunk; }
    template <typename T>
    T* present(const Chunk<T>& c) const { return c.scalars + 2 * c.chunk; }  // C_t . B_t

    template <typename T>
    void pack(const Chunk<T>& c) const {
        T *a = decay(c), *dt_t = size(c);
        const T rate = *A.at<T>(c.h);
        for (int64_t t = 0; t < c.steps; ++t) dt_t[t] = *dt.at<T>(row(c.s), time(c, t), c.h);
        for (int64_t t = 0; t < round_up(c.steps, LANES<T>); t += LANES<T>)
            store(a + t, exp_of(load(dt_t + t) * spread(rate)));
        for (int64_t t = 0; t < c.steps; ++t) {
            const int64_t b = row(c.s), at = time(c, t), g = group(c.h);
            T *r = c.r + t * c.wide_k, *w = c.w + t * c.wide_k, *v = c.v + t * c.wide_v;
            copy_row(C, b, at, g, r, shape.K, c.wide_k);
            copy_row(B, b, at, g, c.k + t * c.wide_k, shape.K, c.wide_k);
            copy_row(x, b, at, c.h, v, shape.V, c.wide_v);
            present(c)[t] = dot(r, c.k + t * c.wide_k, c.wide_k);
            for (int64_t i = 0; i < c.wide_k; i += LANES<T>) {
                store(w + i, spread(a[t]));
                store(r + i, load(r + i) * spread(a[t]));
            }
            for (int64_t j = 0; j < c.wide_v; j += LANES<T>) store(v + j, load(v + j) * spread(dt_t[t]));
        }
    }

    template <typename T>
    void own_answers(const Chunk<T>& c) const {
        const T skip = D ? *D.at<T>(c.h) : 0;
        for (int64_t t = 0; t < c.steps; ++t) {
            T* y_t = c.y + t * c.wide_v;
            if (D) copy_row(x, row(c.s), time(c, t), c.h, y_t, shape.V, c.wide_v);
            if (!std::isfinite(present(c)[t]) || !finite(c.v + t * c.wide_v, c.wide_v)) {
                as_written(c, t, skip);
                continue;
            }
            for (int64_t j = 0; j < c.wide_v; j += LANES<T>) {
                const Vec<T> skipped = D ? spread(skip) * load(y_t + j) : Vec<T>{};
                store(y_t + j, skipped + spread(present(c)[t]) * load(c.v + t * c.wide_v + j));
            }
        }
    }

    // As in Wkv6; y holds x where there is a skip.
    template <typename T>
    void as_written(const Chunk<T>& c, int64_t t, T skip) const {
        const T* read = C.at<T>(row(c.s), time(c, t), group(c.h));
        for (int64_t j = 0; j < shape.V; ++j) {
            T& y_t = c.y[t * c.wide_v + j];
            T total = D ? skip * y_t : 0;
            for (int64_t n = 0; n < shape.K; ++n)
                total += read[n * C.stride[3]] * (c.k[t * c.wide_k + n] * c.v[t * c.wide_v + j]);
            y_t = total;
        }
    }

    template <typename T>
    void write_gradients(const Chunk<T>& c, const Gradients<T>& g) const {
        const T rate = *A.at<T>(c.h), skip = D ? *D.at<T>(c.h) : 0;
        double d_rate = 0, d_skip = 0;
        for (int64_t t = c.steps - 1; t >= 0; --t) {
            const int64_t b = row(c.s), at = time(c, t);
            const T a = decay(c)[t], dt_t = size(c)[t];
            T *dr = g.dr + t * c.wide_k, *dk = g.dk + t * c.wide_k, *dv = g.dv + t * c.wide_v;
            T *r = c.r + t * c.wide_k, *k = c.k + t * c.wide_k, *x_t = c.y + t * c.wide_v;
            const T* dy_t = g.dy + t * c.wide_v;
            const T share = dot(c.v + t * c.wide_v, dy_t, c.wide_v);
            T d_log_a = dot(r, dr, c.wide_k);
            for (int64_t i = 0; i < shape.K; ++i) d_log_a += g.dlog_w[t * c.wide_k + i];
            copy_row(C, b, at, group(c.h), r, shape.K, c.wide_k);
            for (int64_t i = 0; i < c.wide_k; i += LANES<T>) {
                store(dr + i, spread(a) * load(dr + i) + load(k + i) * spread(share));
                store(dk + i, load(dk + i) + load(r + i) * spread(share));
            }
            add_scaled(dv, dy_t, present(c)[t], c.wide_v);
            copy_row(x, b, at, c.h, x_t, shape.V, c.wide_v);
            const T d_size = dot(dv, x_t, c.wide_v);
            d_skip += dot(dy_t, x_t, c.wide_v);
            d_rate += double(d_log_a) * dt_t;
            for (int64_t j = 0; j < c.wide_v; j += LANES<T>) {
                const Vec<T> skipped = D ? spread(skip) * load(dy_t + j) : Vec<T>{};
                store(dv + j, spread(dt_t) * load(dv + j) + skipped);
            }
            if (c.h % heads_of_part() == 0) {
                write_row(d_C, b, at, part(c.h), dr, shape.K);
                write_row(d_B, b, at, part(c.h), dk, shape.K);
            } else {
                add_to_row(d_C, b, at, part(c.h), dr, shape.K);
                add_to_row(d_B, b, at, part(c.h), dk, shape.K);
            }
            write_row(d_x, b, at, c.h, dv, shape.V);
            *d_dt.at<T>(b, at, c.h) = rate * d_log_a + d_size;
        }
        *d_A.at<T>(c.s, c.h) += T(d_rate);
        if (D) *d_D.at<T>(c.s, c.h) += T(d_skip);
    }
};
