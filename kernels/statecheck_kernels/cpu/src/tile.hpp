// The inner loops of wkv6 and of ssd: R rows of the memory, NV vectors wide, stay in registers while time runs.
//
// `tile` does one thing,
//
//     out_t += a_t[i] s[i]        with s[i] before this step
//     s[i]   = w_t[i] s[i] + b_t[i] x_t
//
// i over rows, x and out over lanes, and so serves for the answers and for the gradient of v, since the gradient of the
// memory obeys G_t-1 = diag(w_t) G_t + r_t^T dy_t as the memory does S_t = diag(w_t) S_t-1 + k_t^T v_t:
//
//     what         runs      rows   lanes   a   b   x    out
//     answers      forward   K      V       r   k   v    y
//     grad of v    backward  K      V       k   r   dy   dv
//
// `tile_gradients` has K on the lanes and V in the rows, and does what sums over V: dr_t = S_t-1 dy_t, dk_t = G_t v_t and
// dw_t = sum of G_t S_t-1. The memory before each step is kept for the second sweep: a few vectors a step. (The last one
// could be had from r dr - k dk alone, as a sum over time; where decays are small, all its digits are lost that way.)

// Rows kept in registers at once, and vectors of a row. Float64 is there to be checked against: plain loops, quick to
// compile.
template <typename T>
constexpr int ROWS = sizeof(T) == 8 ? 1 : VECTOR_BYTES == 64 ? 8 : 4;  // of 32 and of 16 registers
template <typename T>
constexpr int ACROSS = sizeof(T) == 8 ? 1 : 2;

template <typename T>
struct Operands {
    const T* a;  // (steps, rows)
    const T* b;
    const T* w;
    const T* x;  // (steps, lanes)
    T* out;      // (steps, lanes), added to
    T* state;    // (rows, lanes), replaced
    int64_t by_row;   // distance of steps in a, b and w: negative to run backward
    int64_t by_lane;  // the same in x and out
    int64_t width;    // distance of rows in the state
    int64_t rows;
    int64_t lanes;  // a multiple of LANES<T>
    int64_t steps;
    Wanted* wanted;  // asked for meanwhile
};

// What a pass adds up of the memory after each step; each (steps, LANES) and over all rows and vectors.
template <typename T>
struct Sums {
    const uint8_t* observed;  // (steps)
    const T* threshold;       // (steps), for counting
    T* square;
    T* largest;
    T* log;    // square * log2(magnitude)
    T* count;  // of magnitudes at or above the threshold
};

enum Pass { PLAIN, MOMENTS, ENTROPY, COUNT };

template <typename T, int PASS>
INLINE void add_up(const Sums<T>& sums, int64_t t, const Vec<T>* s, int n) {
    Vec<T> square{}, largest_{}, log{}, count{};
    const Vec<T> threshold = PASS == COUNT ? spread(sums.threshold[t]) : Vec<T>{};
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
        const Vec<T> size = magnitude<T>(s[i]);
        if (PASS == COUNT) {
            count += size >= threshold ? spread((T)1) : Vec<T>{};
            continue;
        }
        const Vec<T> own = s[i] * s[i];
        square += own;
        largest_ = larger<T>(size, largest_);
        if (PASS == ENTROPY) log += own * log2_of(size);
    }
    T* const at = PASS == COUNT ? sums.count : sums.square;
    const int64_t here = t * LANES<T>;
    store(at + here, load(at + here) + (PASS == COUNT ? count : square));
    if (PASS == COUNT) return;
    store(sums.largest + here, larger<T>(largest_, load(sums.largest + here)));
    if (PASS == ENTROPY) store(sums.log + here, load(sums.log + here) + log);
}

template <typename T, int R, int NV, int PASS>
NOINLINE void tile(const Operands<T>& o, const Sums<T>* sums, int64_t row, int64_t lane) {
    constexpr int64_t L = LANES<T>;
    Vec<T> s[R * NV];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) s[i * NV + v] = load(o.state + (row + i) * o.width + lane + v * L);
    const T *a = o.a + row, *b = o.b + row, *w = o.w + row, *x = o.x + lane;
    T* out = PASS == COUNT ? nullptr : o.out + lane;
    for (int64_t t = 0; t < o.steps; ++t) {
        if (PASS != COUNT) o.wanted->ask(), o.wanted->ask();
        Vec<T> y[NV], xs[NV];
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
            xs[v] = load(x + v * L);
            if (PASS != COUNT) y[v] = load(out + v * L);
        }
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const Vec<T> read = spread(a[i]), write = spread(b[i]), kept = spread(w[i]);
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) {
                Vec<T>& state = s[i * NV + v];
                if (PASS != COUNT) y[v] += read * state;
                const Vec<T> written = write * xs[v];
                state = kept * state + written;
            }
        }
        if (PASS != COUNT) {
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) store(out + v * L, y[v]);
            out += o.by_lane;
        }
        if (PASS != PLAIN && sums->observed[t]) add_up<T, PASS>(*sums, t, s, R * NV);
        a += o.by_row, b += o.by_row, w += o.by_row, x += o.by_lane;
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) store(o.state + (row + i) * o.width + lane + v * L, s[i * NV + v]);
}

template <typename T, int NV, int PASS>
INLINE void column(const Operands<T>& o, const Sums<T>* sums, int64_t lane) {
    constexpr int R = ROWS<T>;
    int64_t row = 0;
    for (; row + R <= o.rows; row += R) tile<T, R, NV, PASS>(o, sums, row, lane);
    for (; row < o.rows; ++row) tile<T, 1, NV, PASS>(o, sums, row, lane);
}

// The whole memory over `steps` steps.
template <typename T, int PASS>
void advance(const Operands<T>& o, const Sums<T>* sums = nullptr) {
    constexpr int64_t L = LANES<T>, N = ACROSS<T>;
    int64_t lane = 0;
    for (; lane + N * L <= o.lanes; lane += N * L) column<T, N, PASS>(o, sums, lane);
    for (; lane < o.lanes; lane += L) column<T, 1, PASS>(o, sums, lane);
}

template <typename T>
struct Sensitivities {
    const T *r, *k, *w;  // (steps, lanes)
    const T *v, *dy;     // (steps, rows)
    T *dr, *dk, *dw;     // (steps, lanes), added to
    const T* S;          // (rows, lanes) at the start of the chunk
    T* G;                // (rows, lanes) at its end, replaced by that at its start
    T* before;           // room for (steps, ROWS * ACROSS vectors)
    int64_t by_row, by_lane, rows, lanes, steps;
    Wanted* wanted;
};

template <typename T, int R, int NV>
NOINLINE void tile_gradients(const Sensitivities<T>& o, int64_t row, int64_t lane) {
    constexpr int64_t L = LANES<T>;
    Vec<T> s[R * NV];
#pragma GCC unroll 16
    for (int i = 0; i < R * NV; ++i) s[i] = load(o.S + (row + i / NV) * o.lanes + lane + i % NV * L);
    for (int64_t t = 0; t < o.steps; ++t) {
        o.wanted->ask();
        const T *v = o.v + t * o.by_row + row, *dy = o.dy + t * o.by_row + row;
        const int64_t at = t * o.by_lane + lane;
        T* const before = o.before + t * R * NV * L;
        Vec<T> dr[NV], k[NV], w[NV];
#pragma GCC unroll 2
        for (int n = 0; n < NV; ++n) dr[n] = load(o.dr + at + n * L), k[n] = load(o.k + at + n * L), w[n] = load(o.w + at + n * L);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const Vec<T> read = spread(dy[i]), write = spread(v[i]);
#pragma GCC unroll 2
            for (int n = 0; n < NV; ++n) {
                Vec<T>& state = s[i * NV + n];
                store(before + (i * NV + n) * L, state);
                dr[n] += read * state;
                const Vec<T> written = write * k[n];
                state = w[n] * state + written;
            }
        }
#pragma GCC unroll 2
        for (int n = 0; n < NV; ++n) store(o.dr + at + n * L, dr[n]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R * NV; ++i) s[i] = load(o.G + (row + i / NV) * o.lanes + lane + i % NV * L);
    for (int64_t t = o.steps - 1; t >= 0; --t) {
        o.wanted->ask();
        const T *v = o.v + t * o.by_row + row, *dy = o.dy + t * o.by_row + row;
        const int64_t at = t * o.by_lane + lane;
        const T* const before = o.before + t * R * NV * L;
        Vec<T> dk[NV], dw[NV], r[NV], w[NV];
#pragma GCC unroll 2
        for (int n = 0; n < NV; ++n) {
            dk[n] = load(o.dk + at + n * L), dw[n] = load(o.dw + at + n * L);
            r[n] = load(o.r + at + n * L), w[n] = load(o.w + at + n * L);
        }
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const Vec<T> read = spread(v[i]), write = spread(dy[i]);
#pragma GCC unroll 2
            for (int n = 0; n < NV; ++n) {
                Vec<T>& G = s[i * NV + n];
                dk[n] += read * G;
                dw[n] += G * load(before + (i * NV + n) * L);
                const Vec<T> written = write * r[n];
                G = w[n] * G + written;
            }
        }
#pragma GCC unroll 2
        for (int n = 0; n < NV; ++n) store(o.dk + at + n * L, dk[n]), store(o.dw + at + n * L, dw[n]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R * NV; ++i) store(o.G + (row + i / NV) * o.lanes + lane + i % NV * L, s[i]);
}

template <typename T, int NV>
INLINE void column_gradients(const Sensitivities<T>& o, int64_t lane) {
    constexpr int R = ROWS<T>;
    int64_t row = 0;
    for (; row + R <= o.rows; row += R) tile_gradients<T, R, NV>(o, row, lane);
    for (; row < o.rows; ++row) tile_gradients<T, 1, NV>(o, row, lane);
}

// Gradients of r, k and w over a chunk.
template <typename T>
void sensitivities(const Sensitivities<T>& o) {
    constexpr int64_t L = LANES<T>, N = ACROSS<T>;
    int64_t lane = 0;
    for (; lane + N * L <= o.lanes; lane += N * L) column_gradients<T, N>(o, lane);
    for (; lane < o.lanes; lane += L) column_gradients<T, 1>(o, lane);
}
