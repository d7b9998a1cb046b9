// A memory that is a matrix, S_t = diag(w_t) S_t-1 + k_t^T v_t, read as y_t = r_t S_t-1 + what the step itself adds.
// wkv6 and ssd are this; what differs is where r, k, w, v come from and what a step adds of its own: a `Source`.
//
// Work is cut into units (sequence, head), each on one thread, and time into chunks whose operands are first copied
// side by side: strides, dtypes and exponentials cost once a step, not once a row of the memory. The backward pass runs
// over the chunks from the last to the first and needs the memory at the start of each: the checkpoints.

// The operands of one chunk, contiguous; K and V padded to whole vectors with zeros.
template <typename T>
struct Chunk {
    int64_t s, h;    // sequence and head
    int64_t first;   // step of the sequence at which it starts
    int64_t steps;
    int64_t wide_k;  // K rounded up
    int64_t wide_v;
    T *r, *k, *w;  // (steps, wide_k)
    T *v, *y;      // (steps, wide_v)
    T* scalars;    // (4, chunk): a source's own
    int64_t chunk;
    T *bonus, *d_bonus;  // (wide_k) of the head
};

// Another chunk of the same head.
template <typename T>
INLINE Chunk<T> following(Chunk<T> c, int64_t first, int64_t steps) {
    c.first = first, c.steps = steps;
    return c;
}

struct Shape {
    int64_t heads, K, V, chunk;

    // Lines of `arrays` rows of K and as many of V, a chunk of them.
    int64_t lines(int64_t arrays, int64_t size) const { return arrays * chunk * (K * size / 64 + V * size / 64 + 4); }
};

// The memory's own chunk: long enough, up to 128 steps, that checkpoints take no more room than the inputs.
INLINE int64_t chunk_of(int64_t K, int64_t V) {
    const int64_t wanted = round_up((K * V + K + V - 1) / (K + V), 32);
    return wanted < 32 ? 32 : wanted > 128 ? 128 : wanted;
}

template <typename T>
INLINE void read_state(const View& from, int64_t s, int64_t h, T* to, int64_t rows, int64_t columns, int64_t width) {
    if (!from) return;  // zeros
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) to[i * width + j] = *from.at<T>(s, h, i, j);
}

template <typename T>
INLINE void write_state(const View& to, int64_t s, int64_t h, const T* from, int64_t rows, int64_t columns, int64_t width) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) *to.at<T>(s, h, i, j) = from[i * width + j];
}

template <typename T, typename Source>
INLINE T* checkpoint(const Source& source, int64_t s, int64_t h) {
    if (!source.checkpoints) return nullptr;
    const Shape& shape = source.shape;
    const int64_t chunk = source.sequences.chunks_before(s, shape.chunk);
    return static_cast<T*>(source.checkpoints) + (chunk * shape.heads + h) * shape.K * shape.V;
}

template <typename T>
INLINE void transpose(const T* from, int64_t from_width, T* to, int64_t to_width, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) to[j * to_width + i] = from[i * from_width + j];
}

// The memory after each step, from `state` on, as rows: for what is too rare to be fast.
template <typename T>
NOINLINE void step(const Chunk<T>& c, int64_t t, int64_t K, T* state) {
    for (int64_t i = 0; i < K; ++i) {
        const Vec<T> w = spread(c.w[t * c.wide_k + i]), k = spread(c.k[t * c.wide_k + i]);
        for (int64_t j = 0; j < c.wide_v; j += LANES<T>) {
            T* at = state + i * c.wide_v + j;
            const Vec<T> written = k * load(c.v + t * c.wide_v + j);
            store(at, w * load(at) + written);
        }
    }
}

// Sum of the memory after each step, without looking at it: its row sums obey the recurrence too.
template <typename T>
NOINLINE void totals(const Chunk<T>& c, int64_t K, int64_t V, const T* start, double* total) {
    Buffer<T> rows(c.wide_k);
    for (int64_t i = 0; i < K; ++i)
        for (int64_t j = 0; j < V; ++j) rows[i] += start[i * c.wide_v + j];
    for (int64_t t = 0; t < c.steps; ++t) {
        T written = 0;
        for (int64_t j = 0; j < V; ++j) written += c.v[t * c.wide_v + j];
        Vec<T> sums{};
        for (int64_t i = 0; i < c.wide_k; i += LANES<T>) {
            const int64_t at = t * c.wide_k + i;
            const Vec<T> now = load(c.w + at) * load(rows + i) + load(c.k + at) * spread(written);
            store(rows + i, now);
            sums += now;
        }
        total[t] = sum<T>(sums);
    }
}

// The statistics of one head, chunk after chunk.
template <typename T>
class HeadObserver {
  public:
    HeadObserver(const Statistics& out, const Sequences& sequences, const Shape& shape, int64_t s, int64_t h)
        : out_(out), sequences_(sequences), shape_(shape), active_(bool(out)), seen_(active_ ? shape.chunk : 0), totals_(seen_size()),
          start_(active_ ? shape.K * round_up(shape.V, LANES<T>) : 0),
          scratch_(active_ ? shape.K * round_up(shape.V, LANES<T>) : 0) {
        if (active_) running_ = out.running + s * shape.heads + h;
    }
    bool active() const { return active_; }

    const Sums<T>* begin(const Chunk<T>& c, const T* state) {
        size_ = shape_.K * c.wide_v;
        std::memcpy(start_, state, size_ * sizeof(T));
        seen_.begin(out_, sequences_, c.s, c.first, c.steps);
        totals<T>(c, shape_.K, shape_.V, start_, totals_);
        return &seen_.sums;
    }

    void end(const Chunk<T>& c) {
        bool any = false;
        for (int64_t t = 0; t < c.steps; ++t) {
            seen_.again[t] = 0;
            if (!seen_.observed[t]) continue;
            seen_.moments[t] = seen_.gathered(t, totals_[t]);
            any |= seen_.again[t] = seen_.moments[t].extreme();
        }
        if (any) count_exactly(c);
        const int64_t last = thresholds(c);
        if (last >= 0) count_near(c, last + 1);
        for (int64_t t = 0; t < c.steps; ++t) {
            if (!seen_.observed[t]) continue;
            const int64_t at = out_.place(sequences_, c.s, c.first + t) * shape_.heads + c.h;
            write_moments(out_, at, seen_.moments[t], double(shape_.K * shape_.V));
            if (seen_.again[t]) out_.near_largest[at] = seen_.counted(t) - seen_.moments[t].infinite;
        }
    }

  private:
    int64_t seen_size() const { return active_ ? shape_.chunk : 0; }

    void count_exactly(const Chunk<T>& c) {
        std::memcpy(scratch_, start_, size_ * sizeof(T));
        for (int64_t t = 0; t < c.steps; ++t) {
            step<T>(c, t, shape_.K, scratch_);
            if (!seen_.again[t]) continue;
            Moments m;
            for (int64_t i = 0; i < shape_.K; ++i)
                for (int64_t j = 0; j < shape_.V; ++j) m.add_unit(scratch_[i * c.wide_v + j]);
            seen_.moments[t] = m;
        }
    }

    // Which steps hold a unit near the running maximum (`again`), and the last of them, or -1.
    int64_t thresholds(const Chunk<T>& c) {
        int64_t last = -1;
        for (int64_t t = 0; t < c.steps; ++t) {
            if (!seen_.observed[t]) continue;
            const double now = seen_.moments[t].finite;
            if (now > *running_) *running_ = now;
            seen_.again[t] = *running_ > 0 && now >= NEAR * (1 - 1e-5) * *running_;
            seen_.threshold[t] = threshold_of<T>(*running_);
            if (seen_.again[t]) last = t;
        }
        return last;
    }

    void count_near(const Chunk<T>& c, int64_t steps) {
        std::memcpy(scratch_, start_, size_ * sizeof(T));
        Sums<T> sums = seen_.sums;
        sums.observed = seen_.again;
        const Operands<T> o{c.r, c.k, c.w, c.v, nullptr, scratch_, c.wide_k, c.wide_v, c.wide_v, shape_.K,
                            c.wide_v, steps, nullptr};
        advance<T, COUNT>(o, &sums);
    }

    const Statistics& out_;
    const Sequences& sequences_;
    const Shape& shape_;
    bool active_;
    Observation<T> seen_;
    Buffer<double> totals_;
    Buffer<T> start_, scratch_;
    double* running_ = nullptr;
    int64_t size_ = 0;
};

template <typename T, typename Source>
void outer_forward(const Source& source, int64_t unit) {
    const Shape& shape = source.shape;
    const int64_t K = shape.K, V = shape.V, s = unit / shape.heads, h = unit % shape.heads;
    const int64_t wide_k = round_up(K, LANES<T>), wide_v = round_up(V, LANES<T>), length = source.sequences.length(s);
    Buffer<T> keys(3 * shape.chunk * wide_k), values(2 * shape.chunk * wide_v), state(K * wide_v);
    Buffer<T> scalars(4 * shape.chunk), bonus(wide_k);
    Wanted wanted(shape.lines(4, sizeof(T)));
    HeadObserver<T> observer(source.statistics, source.sequences, shape, s, h);
    read_state<T>(source.initial, s, h, state, K, V, wide_v);
    T* saved = checkpoint<T>(source, s, h);
    T *r = keys, *k = r + shape.chunk * wide_k, *w = k + shape.chunk * wide_k;
    T *v = values, *y = v + shape.chunk * wide_v;
    Chunk<T> c{s, h, 0, 0, wide_k, wide_v, r, k, w, v, y, scalars, shape.chunk, bonus, nullptr};
    source.begin(c);
    for (c.first = 0; c.first < length; c.first += shape.chunk) {
        c.steps = at_most(shape.chunk, length - c.first);
        source.pack(c);
        source.own_answers(c);
        wanted.clear();
        source.expect_answers(c, wanted);
        source.expect(following(c, c.first + c.steps, at_most(shape.chunk, length - c.first - c.steps)), wanted);
        if (saved) {
            for (int64_t i = 0; i < K; ++i) std::memcpy(saved + i * V, state + i * wide_v, V * sizeof(T));
            saved += shape.heads * K * V;
        }
        const Operands<T> o{r, k, w, v, y, state, wide_k, wide_v, wide_v, K, wide_v, c.steps, &wanted};
        const Sums<T>* sums = observer.active() ? observer.begin(c, state) : nullptr;
        if (!sums) advance<T, PLAIN>(o);
        else if (source.statistics.entropy) advance<T, ENTROPY>(o, sums);
        else advance<T, MOMENTS>(o, sums);
        if (sums) observer.end(c);
        source.write_answers(c);
    }
    write_state<T>(source.final, s, h, state, K, V, wide_v);
}

// What the backward pass of one unit holds.
template <typename T>
struct Gradients {
    T *dy;                // (steps, wide_v) of the answers
    T *dr, *dk, *dlog_w;  // (steps, wide_k)
    T *dv;                // (steps, wide_v)
};

template <typename T, typename Source>
class Backward {
  public:
    Backward(const Source& source, int64_t unit)
        : source_(source), shape_(source.shape), s_(unit / shape_.heads), h_(unit % shape_.heads),
          wide_k_(round_up(shape_.K, LANES<T>)), wide_v_(round_up(shape_.V, LANES<T>)),
          keys_(6 * shape_.chunk * wide_k_), values_(4 * shape_.chunk * wide_v_), G_(shape_.K * wide_v_),
          G_by_column_(shape_.V * wide_k_), S_by_column_(shape_.V * wide_k_), before_(shape_.chunk * ROWS<T> * ACROSS<T> * LANES<T>),
          scalars_(4 * shape_.chunk), bonus_(2 * wide_k_), wanted_(shape_.lines(8, sizeof(T))) {}

    void run() {
        const int64_t length = source_.sequences.length(s_), C = shape_.chunk, wk = wide_k_, wv = wide_v_;
        T *const keys = keys_, *const values = values_, *const bonus = bonus_;
        const Gradients<T> g{values + 2 * C * wv, keys + 3 * C * wk, keys + 4 * C * wk, keys + 5 * C * wk,
                             values + 3 * C * wv};
        Chunk<T> c{s_, h_, 0, 0, wk, wv, keys, keys + C * wk, keys + 2 * C * wk, values, values + C * wv, scalars_, C,
                   bonus, bonus + wk};
        source_.begin(c);
        read_state<T>(source_.d_final, s_, h_, G_, shape_.K, shape_.V, wv);
        transpose<T>(G_, wv, G_by_column_, wk, shape_.K, shape_.V);
        const T* saved = checkpoint<T>(source_, s_, h_);
        for (int64_t chunk = (length + C - 1) / C - 1; chunk >= 0; --chunk) {
            c.first = chunk * C, c.steps = at_most(C, length - c.first);
            one_chunk(c, g, saved + chunk * shape_.heads * shape_.K * shape_.V);
        }
        write_state<T>(source_.d_initial, s_, h_, G_, shape_.K, shape_.V, wv);
        source_.finish(c);
    }

  private:
    void one_chunk(const Chunk<T>& c, const Gradients<T>& g, const T* saved) {
        const int64_t K = shape_.K, V = shape_.V, C = shape_.chunk, wk = wide_k_, wv = wide_v_, steps = c.steps;
        source_.pack(c);
        source_.pack_gradient(c, g);
        wanted_.clear();
        source_.expect_gradients(c, wanted_);
        source_.expect(following(c, c.first - C, c.first > 0 ? C : 0), wanted_);
        std::memset(g.dr, 0, 3 * C * wk * sizeof(T));
        std::memset(g.dv, 0, C * wv * sizeof(T));
        const int64_t back_k = (steps - 1) * wk, back_v = (steps - 1) * wv;
        advance<T, PLAIN>(Operands<T>{c.k + back_k, c.r + back_k, c.w + back_k, g.dy + back_v, g.dv + back_v, G_, -wk, -wv,
                                      wv, K, wv, steps, &wanted_});
        for (int64_t i = 0; i < K; ++i)
            for (int64_t j = 0; j < V; ++j) S_by_column_[j * wk + i] = saved[i * V + j];
        sensitivities(Sensitivities<T>{c.r, c.k, c.w, c.v, g.dy, g.dr, g.dk, g.dlog_w, S_by_column_, G_by_column_, before_,
                                       wv, wk, V, wk, steps, &wanted_});
        for (int64_t i = 0; i < steps * wk; i += LANES<T>) store(g.dlog_w + i, load(g.dlog_w + i) * load(c.w + i));
        source_.write_gradients(c, g);
    }

    const Source& source_;
    const Shape& shape_;
    const int64_t s_, h_, wide_k_, wide_v_;
    Buffer<T> keys_, values_, G_, G_by_column_, S_by_column_, before_, scalars_, bonus_;
    Wanted wanted_;
};
