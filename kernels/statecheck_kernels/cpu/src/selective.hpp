// Mamba-1: h_t = exp(dt_t A) h_t-1 + dt_t x_t B_t and y_t = sum over n of h_t C_t + D x_t, for every channel d and unit n.
//
// Lanes are channels; TILE of the N units stay in registers while time runs through a chunk. The exponential of
// every unit and step is most of the work. A unit of work is (sequence, block of channels), on one thread; what is summed
// over channels (the gradients of B and C, the statistics) is written a block each and added up in one order.

constexpr int64_t BLOCK = 128;  // channels of a unit of work
constexpr int64_t SCAN_CHUNK = 32;
template <typename T>
constexpr int TILE = sizeof(T) == 8 ? 1 : VECTOR_BYTES == 64 ? 16 : 8;
template <typename T>
constexpr int SMALL_TILE = sizeof(T) == 8 ? 1 : 4;

struct Scan {
    Sequences sequences;
    int64_t channels, N;
    Statistics statistics;
    View x, dt, A, B, C, D;  // (row, step, channel); A (channel, n); B, C (row, step, n); D (channel)
    View initial, final;     // (sequence, channel, n)
    View y;
    void* checkpoints;    // (chunks of all sequences, blocks, N * saved_width), or null
    Moments* moments;     // (sequence rows, observed steps, blocks), or null
    double* counts;       // the same
    double* thresholds;   // (sequence rows, observed steps): 0 where nothing is near
    View dy, d_final, d_initial;
    View d_x, d_dt, d_A, d_B, d_C, d_D;  // d_A (sequence, channel, n), d_D (sequence, channel); d_B, d_C (row, step, block, n)

    int64_t blocks() const { return (channels + BLOCK - 1) / BLOCK; }
    int64_t saved_width() const { return at_most(BLOCK, round_up(channels, 16)); }  // of a checkpoint: whole vectors
    int64_t place(int64_t s, int64_t step) const { return statistics.place(sequences, s, step); }
};

// One chunk of one block: contiguous, channels padded to whole vectors with zeros.
template <typename T>
class ScanBlock {
  public:
    ScanBlock(const Scan& scan, int64_t unit, bool gradients)
        : scan(scan), s(unit / scan.blocks()), block(unit % scan.blocks()), first_channel(block * BLOCK),
          width(at_most(BLOCK, scan.channels - first_channel)), wide(round_up(width, LANES<T>)), N(scan.N),
          A(N * wide), state(N * wide), x(SCAN_CHUNK * wide), dt(SCAN_CHUNK * wide), y(SCAN_CHUNK * wide),
          B(SCAN_CHUNK * N), C(SCAN_CHUNK * N), D(wide), dy(gradients ? SCAN_CHUNK * wide : 0),
          wanted(5 * SCAN_CHUNK * (BLOCK * sizeof(T) / 64 + 2)) {
        for (int64_t n = 0; n < N; ++n)
            for (int64_t d = 0; d < width; ++d)
                A[n * wide + d] = *scan.A.at<T>(first_channel + d, n) * (T)1.4426950408889634074;  // exp is 2^ here
        for (int64_t d = 0; scan.D && d < width; ++d) D[d] = *scan.D.at<T>(first_channel + d);
    }

    void read(const View& from, T* to) const {
        if (!from) return;
        for (int64_t d = 0; d < width; ++d)
            for (int64_t n = 0; n < N; ++n) to[n * wide + d] = *from.at<T>(s, first_channel + d, n);
    }
    void write(const View& to, const T* from) const {
        for (int64_t d = 0; d < width; ++d)
            for (int64_t n = 0; n < N; ++n) *to.at<T>(s, first_channel + d, n) = from[n * wide + d];
    }
    T* checkpoint(int64_t chunk) const {
        const int64_t all = scan.sequences.chunks_before(s, SCAN_CHUNK) + chunk;
        return static_cast<T*>(scan.checkpoints) + (all * scan.blocks() + block) * N * scan.saved_width();
    }
    void rows(const View& from, int64_t first, int64_t steps, T* to) const {
        const int64_t b = scan.sequences.row(s), start = scan.sequences.start(s) + first;
        for (int64_t t = 0; t < steps; ++t) {
            const T* at = from.at<T>(b, start + t, first_channel);
            if (from.stride[2] == 1) std::memcpy(to + t * wide, at, width * sizeof(T));
            else
                for (int64_t d = 0; d < width; ++d) to[t * wide + d] = at[d * from.stride[2]];
        }
    }
    void expect(const View& rows, int64_t first, int64_t steps) {
        for (int64_t t = 0; rows.stride[2] == 1 && t < steps; ++t)
            wanted.add(rows.at<T>(scan.sequences.row(s), scan.sequences.start(s) + first + t, first_channel), width);
    }
    void write_rows(const View& into, int64_t first, int64_t steps, const T* from) const {
        const int64_t b = scan.sequences.row(s), start = scan.sequences.start(s) + first;
        for (int64_t t = 0; t < steps; ++t) {
            T* at = into.at<T>(b, start + t, first_channel);
            if (into.stride[2] == 1) std::memcpy(at, from + t * wide, width * sizeof(T));
            else
                for (int64_t d = 0; d < width; ++d) at[d * into.stride[2]] = from[t * wide + d];
        }
    }
    void pack(int64_t first, int64_t steps) {
        rows(scan.x, first, steps, x);
        rows(scan.dt, first, steps, dt);
        const int64_t b = scan.sequences.row(s), start = scan.sequences.start(s) + first;
        for (int64_t t = 0; t < steps; ++t)
            for (int64_t n = 0; n < N; ++n) {
                B[t * N + n] = *scan.B.at<T>(b, start + t, n);
                C[t * N + n] = *scan.C.at<T>(b, start + t, n);
            }
    }

    const Scan& scan;
    const int64_t s, block, first_channel, width, wide, N;
    Buffer<T> A, state, x, dt, y, B, C, D, dy;
    mutable Wanted wanted;  // asked for while arithmetic runs
};

// TILE units of one vector of channels through a chunk. PASS as in `tile`.
template <typename T, int NT, int PASS>
NOINLINE void scan_tile(const ScanBlock<T>& k, int64_t steps, int64_t lane, int64_t n0, T* state, const Sums<T>* sums,
                        T* total) {
    Vec<T> h[NT];
#pragma GCC unroll 16
    for (int n = 0; n < NT; ++n) h[n] = load(state + (n0 + n) * k.wide + lane);
    for (int64_t t = 0; t < steps; ++t) {
        k.wanted.ask(), k.wanted.ask(), k.wanted.ask();
        const int64_t at = t * k.wide + lane;
        const Vec<T> dt = load(k.dt + at), written = dt * load(k.x + at);
        Vec<T> y = PASS == COUNT ? Vec<T>{} : load(k.y + at);
        const T *B = k.B + t * k.N + n0, *C = k.C + t * k.N + n0;
#pragma GCC unroll 16
        for (int n = 0; n < NT; ++n) {
            const Vec<T> kept = exp2_of(dt * load(k.A + (n0 + n) * k.wide + lane));
            const Vec<T> added = written * spread(B[n]);
            h[n] = kept * h[n] + added;
            if (PASS != COUNT) y += h[n] * spread(C[n]);
        }
        if (PASS != COUNT) store(k.y + at, y);
        if (PASS != PLAIN && sums->observed[t]) {
            add_up<T, PASS>(*sums, t, h, NT);
            if (PASS != COUNT) {
                Vec<T> added{};
#pragma GCC unroll 16
                for (int n = 0; n < NT; ++n) added += h[n];
                store(total + t * LANES<T>, load(total + t * LANES<T>) + added);
            }
        }
    }
#pragma GCC unroll 16
    for (int n = 0; n < NT; ++n) store(state + (n0 + n) * k.wide + lane, h[n]);
}

template <typename T, int PASS>
INLINE void scan_advance(const ScanBlock<T>& k, int64_t steps, T* state, const Sums<T>* sums = nullptr,
                         T* total = nullptr) {
    for (int64_t lane = 0; lane < k.wide; lane += LANES<T>) {
        int64_t n = 0;
        constexpr int wide = TILE<T>, small = SMALL_TILE<T>;
        for (; n + wide <= k.N; n += wide) scan_tile<T, wide, PASS>(k, steps, lane, n, state, sums, total);
        for (; n + small <= k.N; n += small) scan_tile<T, small, PASS>(k, steps, lane, n, state, sums, total);
        for (; n < k.N; ++n) scan_tile<T, 1, PASS>(k, steps, lane, n, state, sums, total);
    }
}

// Moments of a block where vectors of T can't tell: the chunk again from `start`, every unit in float64.
template <typename T>
NOINLINE void scan_exactly(const ScanBlock<T>& k, int64_t steps, const T* start, T* scratch, Observation<T>& seen) {
    std::memcpy(scratch, start, k.N * k.wide * sizeof(T));
    for (int64_t t = 0; t < steps; ++t) {
        for (int64_t n = 0; n < k.N; ++n)
            for (int64_t lane = 0; lane < k.wide; lane += LANES<T>) {
                const int64_t at = t * k.wide + lane;
                const Vec<T> dt = load(k.dt + at), written = dt * load(k.x + at), kept = exp2_of(dt * load(k.A + n * k.wide + lane));
                const Vec<T> added = written * spread(k.B[t * k.N + n]);
                store(scratch + n * k.wide + lane, kept * load(scratch + n * k.wide + lane) + added);
            }
        if (!seen.again[t]) continue;
        Moments m;
        for (int64_t n = 0; n < k.N; ++n)
            for (int64_t d = 0; d < k.width; ++d) m.add_unit(scratch[n * k.wide + d]);
        seen.moments[t] = m;
    }
}

template <typename T>
void scan_forward(const Scan& scan, int64_t unit) {
    ScanBlock<T> k(scan, unit, false);
    const bool observing = bool(scan.statistics);
    Observation<T> seen(observing ? SCAN_CHUNK : 0);
    Buffer<T> total(observing ? SCAN_CHUNK * LANES<T> : 0), start(observing ? k.N * k.wide : 0), scratch(observing ? k.N * k.wide : 0);
    k.read(scan.initial, k.state);
    const int64_t length = scan.sequences.length(k.s);
    for (int64_t first = 0; first < length; first += SCAN_CHUNK) {
        const int64_t steps = at_most(SCAN_CHUNK, length - first);
        k.pack(first, steps);
        k.wanted.clear();
        k.expect(scan.y, first, steps);
        for (const View* from : {&scan.x, &scan.dt}) k.expect(*from, first + steps, at_most(SCAN_CHUNK, length - first - steps));
        for (int64_t i = 0; i < steps * k.wide; i += LANES<T>)
            store(k.y + i, scan.D ? load(k.D + i % k.wide) * load(k.x + i) : Vec<T>{});
        if (scan.checkpoints) std::memcpy(k.checkpoint(first / SCAN_CHUNK), k.state, k.N * k.wide * sizeof(T));
        if (!observing) scan_advance<T, PLAIN>(k, steps, k.state);
        else {
            std::memcpy(start, k.state, k.N * k.wide * sizeof(T));
            seen.begin(scan.statistics, scan.sequences, k.s, first, steps);
            total.clear();
            if (scan.statistics.entropy) scan_advance<T, ENTROPY>(k, steps, k.state, &seen.sums, total);
            else scan_advance<T, MOMENTS>(k, steps, k.state, &seen.sums, total);
            bool any = false;
            for (int64_t t = 0; t < steps; ++t) {
                seen.again[t] = 0;
                if (!seen.observed[t]) continue;
                double sum = 0;
                for (int64_t i = 0; i < LANES<T>; ++i) sum += total[t * LANES<T> + i];
                seen.moments[t] = seen.gathered(t, sum);
                any |= seen.again[t] = seen.moments[t].extreme();
            }
            if (any) scan_exactly<T>(k, steps, start, scratch, seen);
            for (int64_t t = 0; t < steps; ++t)
                if (seen.observed[t])
                    scan.moments[scan.place(k.s, first + t) * scan.blocks() + k.block] = seen.moments[t];
        }
        k.write_rows(scan.y, first, steps, k.y);
    }
    k.write(scan.final, k.state);
}

// Between the two passes: the statistics of one sequence, and from which magnitude on a unit of a step is near.
inline void scan_thresholds(const Scan& scan, int64_t s) {
    const Statistics& out = scan.statistics;
    double& running = out.running[s];
    for (int64_t step = 0; step < scan.sequences.length(s); ++step) {
        if (!out.wanted(scan.sequences, s, step)) continue;
        const int64_t at = scan.place(s, step);
        Moments m;
        for (int64_t block = 0; block < scan.blocks(); ++block) m.add(scan.moments[at * scan.blocks() + block]);
        write_moments(out, at, m, double(scan.channels * scan.N));
        if (m.finite > running) running = m.finite;
        const bool near = running > 0 && m.finite >= NEAR * (1 - 1e-5) * running;
        scan.thresholds[at] = near ? NEAR * running : 0;
    }
}

// The second pass: units near the running maximum, in those chunks alone that have any.
template <typename T>
void scan_count(const Scan& scan, int64_t unit) {
    ScanBlock<T> k(scan, unit, false);
    Observation<T> seen(SCAN_CHUNK);
    const int64_t length = scan.sequences.length(k.s);
    for (int64_t first = 0; first < length; first += SCAN_CHUNK) {
        const int64_t steps = at_most(SCAN_CHUNK, length - first);
        seen.begin(scan.statistics, scan.sequences, k.s, first, steps);
        bool any = false;
        for (int64_t t = 0; t < steps; ++t) {
            if (!seen.observed[t]) continue;
            const double threshold = scan.thresholds[scan.place(k.s, first + t)];
            seen.threshold[t] = threshold_of<T>(threshold / NEAR);
            any |= seen.observed[t] = threshold > 0;
        }
        if (!any) continue;
        k.pack(first, steps);
        std::memcpy(k.state, k.checkpoint(first / SCAN_CHUNK), k.N * k.wide * sizeof(T));
        scan_advance<T, COUNT>(k, steps, k.state, &seen.sums);
        for (int64_t t = 0; t < steps; ++t) {
            if (!seen.observed[t]) continue;
            const int64_t at = scan.place(k.s, first + t) * scan.blocks() + k.block;
            scan.counts[at] = seen.counted(t) - scan.moments[at].infinite;
        }
    }
}

inline void scan_counted(const Scan& scan, int64_t s) {
    const Statistics& out = scan.statistics;
    for (int64_t step = 0; step < scan.sequences.length(s); ++step) {
        if (!out.wanted(scan.sequences, s, step)) continue;
        const int64_t at = scan.place(s, step);
        if (scan.thresholds[at] <= 0) continue;
        double total = 0;
        for (int64_t block = 0; block < scan.blocks(); ++block) total += scan.counts[at * scan.blocks() + block];
        out.near_largest[at] = total;
    }
}

// The backward pass of one block. G is the gradient of h_t through what follows step t; q = G h_t-1 exp(dt A) is what
// reaches dt A.
template <typename T>
class ScanBackward {
  public:
    ScanBackward(const Scan& scan, int64_t unit)
        : scan_(scan), k_(scan, unit, true), G_(k_.N * k_.wide), d_A_(k_.N * k_.wide), d_D_(k_.wide),
          before_(SCAN_CHUNK * TILE<T> * LANES<T>), kept_(SCAN_CHUNK * TILE<T> * LANES<T>), d_dt_(SCAN_CHUNK * k_.wide),
          d_written_(SCAN_CHUNK * k_.wide), d_B_(SCAN_CHUNK * k_.N * LANES<T>), d_C_(SCAN_CHUNK * k_.N * LANES<T>) {}

    void run() {
        const int64_t length = scan_.sequences.length(k_.s), chunks = (length + SCAN_CHUNK - 1) / SCAN_CHUNK;
        k_.read(scan_.d_final, G_);
        for (int64_t chunk = chunks - 1; chunk >= 0; --chunk)
            one_chunk(chunk, at_most(SCAN_CHUNK, length - chunk * SCAN_CHUNK));
        k_.write(scan_.d_initial, G_);
        for (int64_t d = 0; d < k_.width; ++d) {
            for (int64_t n = 0; n < k_.N; ++n) *scan_.d_A.at<T>(k_.s, k_.first_channel + d, n) = d_A_[n * k_.wide + d];
            if (scan_.D) *scan_.d_D.at<T>(k_.s, k_.first_channel + d) = d_D_[d];
        }
    }

  private:
    void one_chunk(int64_t chunk, int64_t steps) {
        const int64_t first = chunk * SCAN_CHUNK;
        k_.pack(first, steps);
        k_.rows(scan_.dy, first, steps, k_.dy);
        k_.wanted.clear();
        for (const View* to : {&scan_.d_dt, &scan_.d_x}) k_.expect(*to, first, steps);
        for (const View* from : {&scan_.x, &scan_.dt, &scan_.dy}) k_.expect(*from, first - SCAN_CHUNK, first > 0 ? SCAN_CHUNK : 0);
        std::memcpy(k_.state, k_.checkpoint(chunk), k_.N * k_.wide * sizeof(T));
        d_dt_.clear(), d_written_.clear(), d_B_.clear(), d_C_.clear();
        for (int64_t lane = 0; lane < k_.wide; lane += LANES<T>) {
            int64_t n = 0;
            constexpr int wide = TILE<T>, small = SMALL_TILE<T>;
            for (; n + wide <= k_.N; n += wide) units<wide>(steps, lane, n);
            for (; n + small <= k_.N; n += small) units<small>(steps, lane, n);
            for (; n < k_.N; ++n) units<1>(steps, lane, n);
        }
        finish(first, steps);
    }

    template <int NT>
    NOINLINE_MEMBER void units(int64_t steps, int64_t lane, int64_t n0) {
        constexpr int64_t L = LANES<T>;
        again<NT>(steps, lane, n0);
        Vec<T> G[NT], d_A[NT];
#pragma GCC unroll 16
        for (int n = 0; n < NT; ++n) {
            G[n] = load(G_ + (n0 + n) * k_.wide + lane);
            d_A[n] = load(d_A_ + (n0 + n) * k_.wide + lane);
        }
        for (int64_t t = steps - 1; t >= 0; --t) {
            k_.wanted.ask(), k_.wanted.ask(), k_.wanted.ask();
            const int64_t at = t * k_.wide + lane;
            const Vec<T> dt = load(k_.dt + at), written = dt * load(k_.x + at), dy = load(k_.dy + at);
            Vec<T> d_dt = load(d_dt_ + at), d_written = load(d_written_ + at);
            const T *B = k_.B + t * k_.N + n0, *C = k_.C + t * k_.N + n0;
            T *d_B = d_B_ + (t * k_.N + n0) * L, *d_C = d_C_ + (t * k_.N + n0) * L;
#pragma GCC unroll 16
            for (int n = 0; n < NT; ++n) {
                const Vec<T> before = load(before_ + (t * NT + n) * L), kept = load(kept_ + (t * NT + n) * L);
                const Vec<T> decayed = kept * before, added = written * spread(B[n]);
                const Vec<T> own = dy * spread(C[n]);
                G[n] += own;
                store(d_C + n * L, load(d_C + n * L) + dy * (decayed + added));
                store(d_B + n * L, load(d_B + n * L) + G[n] * written);
                d_written += G[n] * spread(B[n]);
                const Vec<T> q = G[n] * decayed;
                d_dt += q * load(k_.A + (n0 + n) * k_.wide + lane);
                d_A[n] += q * dt;
                G[n] *= kept;
            }
            store(d_dt_ + at, d_dt);
            store(d_written_ + at, d_written);
        }
#pragma GCC unroll 16
        for (int n = 0; n < NT; ++n) {
            store(G_ + (n0 + n) * k_.wide + lane, G[n]);
            store(d_A_ + (n0 + n) * k_.wide + lane, d_A[n]);
        }
    }

    // The chunk's states before each step, and what each step keeps of them.
    template <int NT>
    INLINE_MEMBER void again(int64_t steps, int64_t lane, int64_t n0) {
        constexpr int64_t L = LANES<T>;
        Vec<T> h[NT];
#pragma GCC unroll 16
        for (int n = 0; n < NT; ++n) h[n] = load(k_.state + (n0 + n) * k_.wide + lane);
        for (int64_t t = 0; t < steps; ++t) {
            k_.wanted.ask(), k_.wanted.ask();
            const int64_t at = t * k_.wide + lane;
            const Vec<T> dt = load(k_.dt + at), written = dt * load(k_.x + at);
            const T* B = k_.B + t * k_.N + n0;
#pragma GCC unroll 16
            for (int n = 0; n < NT; ++n) {
                const Vec<T> kept = exp2_of(dt * load(k_.A + (n0 + n) * k_.wide + lane)), added = written * spread(B[n]);
                store(before_ + (t * NT + n) * L, h[n]);
                store(kept_ + (t * NT + n) * L, kept);
                h[n] = kept * h[n] + added;
            }
        }
    }

    void finish(int64_t first, int64_t steps) {
        for (int64_t i = 0; i < steps * k_.wide; i += LANES<T>) {
            const int64_t lane = i % k_.wide;
            const Vec<T> x = load(k_.x + i), dt = load(k_.dt + i), dy = load(k_.dy + i), d_written = load(d_written_ + i);
            // A was given as log2: q A log2(e) is ln 2 times too large in the other direction.
            store(d_dt_ + i, load(d_dt_ + i) * spread((T)0.69314718055994530942) + d_written * x);
            const Vec<T> skipped = load(k_.D + lane) * dy;
            store(k_.y + i, d_written * dt + (scan_.D ? skipped : Vec<T>{}));
            store(d_D_ + lane, load(d_D_ + lane) + dy * x);
        }
        k_.write_rows(scan_.d_dt, first, steps, d_dt_);
        k_.write_rows(scan_.d_x, first, steps, k_.y);
        const int64_t b = scan_.sequences.row(k_.s), start = scan_.sequences.start(k_.s) + first;
        for (int64_t t = 0; t < steps; ++t)
            for (int64_t n = 0; n < k_.N; ++n) {
                *scan_.d_B.at<T>(b, start + t, k_.block, n) = sum<T>(load(d_B_ + (t * k_.N + n) * LANES<T>));
                *scan_.d_C.at<T>(b, start + t, k_.block, n) = sum<T>(load(d_C_ + (t * k_.N + n) * LANES<T>));
            }
    }

    const Scan& scan_;
    ScanBlock<T> k_;
    Buffer<T> G_, d_A_, d_D_, before_, kept_, d_dt_, d_written_, d_B_, d_C_;
};
