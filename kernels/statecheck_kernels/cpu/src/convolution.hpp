// The causal convolution of each channel with its own W weights: y_t = bias + sum over w of weight[w] x_t-(W-1)+w, then
// SiLU where asked. Its memory is the last W - 1 inputs. Lanes are channels; bound by memory, not by arithmetic.

constexpr int64_t CONVOLUTION_CHUNK = 64;

struct Convolution {
    Sequences sequences;
    int64_t channels, taps, silu;
    Statistics statistics;
    View x, weight, bias, initial, final, y;  // x, y (row, step, channel); weight (channel, w); states (sequence, channel, w)
    View dy, d_final, d_initial, d_x, d_weight, d_bias;  // d_weight (sequence, channel, w), d_bias (sequence, channel)

    int64_t blocks() const { return (channels + BLOCK - 1) / BLOCK; }
};

template <typename T>
class ConvolutionBlock {
  public:
    ConvolutionBlock(const Convolution& all, int64_t unit)
        : all(all), s(unit / all.blocks()), first_channel(unit % all.blocks() * BLOCK),
          width(at_most(BLOCK, all.channels - first_channel)), wide(round_up(width, LANES<T>)), past(all.taps - 1),
          length(all.sequences.length(s)), weight(all.taps * wide), bias(wide),
          seen((CONVOLUTION_CHUNK + past) * wide), y(CONVOLUTION_CHUNK * wide) {
        for (int64_t d = 0; d < width; ++d) {
            for (int64_t w = 0; w < all.taps; ++w) weight[w * wide + d] = *all.weight.at<T>(first_channel + d, w);
            if (all.bias) bias[d] = *all.bias.at<T>(first_channel + d);
        }
    }

    void row(const View& from, int64_t t, T* to) const {
        const T* at = from.at<T>(all.sequences.row(s), all.sequences.start(s) + t, first_channel);
        if (from.stride[2] == 1) std::memcpy(to, at, width * sizeof(T));
        else
            for (int64_t d = 0; d < width; ++d) to[d] = at[d * from.stride[2]];
    }
    void write_row(const View& into, int64_t t, const T* from) const {
        T* at = into.at<T>(all.sequences.row(s), all.sequences.start(s) + t, first_channel);
        if (into.stride[2] == 1) std::memcpy(at, from, width * sizeof(T));
        else
            for (int64_t d = 0; d < width; ++d) at[d * into.stride[2]] = from[d];
    }
    // The input at time t of the sequence, or for t < 0 what is remembered of the call before.
    void input(int64_t t, T* to) const {
        if (t >= 0) row(all.x, t, to);
        else
            for (int64_t d = 0; d < width; ++d) to[d] = *all.initial.at<T>(s, first_channel + d, t + past);
    }
    // Inputs from `past` steps before `first` on, and what the convolution makes of them, before SiLU.
    void convolve(int64_t first, int64_t steps) {
        for (int64_t p = 0; p < steps + past; ++p) input(first + p - past, seen + p * wide);
        for (int64_t t = 0; t < steps; ++t)
            for (int64_t d = 0; d < wide; d += LANES<T>) {
                Vec<T> sums = load(bias + d);
                for (int64_t w = 0; w <= past; ++w) sums += load(weight + w * wide + d) * load(seen + (t + w) * wide + d);
                store(y + t * wide + d, sums);
            }
    }

    const Convolution& all;
    const int64_t s, first_channel, width, wide, past, length;
    Buffer<T> weight, bias, seen, y;
};

template <typename T>
INLINE Vec<T> sigmoid_of(Vec<T> x) {
    return spread((T)1) / (spread((T)1) + exp_of(-x));
}

template <typename T>
void convolution_forward(const Convolution& all, int64_t unit) {
    ConvolutionBlock<T> k(all, unit);
    for (int64_t first = 0; first < k.length; first += CONVOLUTION_CHUNK) {
        const int64_t steps = at_most(CONVOLUTION_CHUNK, k.length - first);
        k.convolve(first, steps);
        for (int64_t i = 0; all.silu && i < steps * k.wide; i += LANES<T>)
            store(k.y + i, load(k.y + i) / (spread((T)1) + exp_of(-load(k.y + i))));
        for (int64_t t = 0; t < steps; ++t) k.write_row(all.y, first + t, k.y + t * k.wide);
    }
    for (int64_t w = 0; w < k.past; ++w) {
        k.input(k.length - k.past + w, k.seen);
        for (int64_t d = 0; d < k.width; ++d) *all.final.at<T>(k.s, k.first_channel + d, w) = k.seen[d];
    }
}

template <typename T>
void convolution_backward(const Convolution& all, int64_t unit) {
    ConvolutionBlock<T> k(all, unit);
    const int64_t past = k.past, wide = k.wide, C = CONVOLUTION_CHUNK, chunks = (k.length + C - 1) / C;
    // Gradients of the sums of a chunk, and of the `past` steps after it.
    Buffer<T> d_sums((C + past) * wide), d_weight(all.taps * wide), d_bias(wide), d_x(wide);
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
        const int64_t first = chunk * C, steps = at_most(C, k.length - first);
        if (chunk < chunks - 1) std::memmove(d_sums + C * wide, d_sums, past * wide * sizeof(T));
        k.convolve(first, steps);
        for (int64_t t = 0; t < steps; ++t) k.row(all.dy, first + t, d_sums + t * wide);
        for (int64_t i = 0; i < steps * wide; i += LANES<T>) {
            const Vec<T> x = load(k.y + i);
            if (all.silu) {
                const Vec<T> s = sigmoid_of<T>(x);
                store(d_sums + i, load(d_sums + i) * s * (spread((T)1) + x * (spread((T)1) - s)));
            }
            const int64_t d = i % wide, t = i / wide;
            const Vec<T> own = load(d_sums + i);
            store(d_bias + d, load(d_bias + d) + own);
            for (int64_t w = 0; w <= past; ++w)
                store(d_weight + w * wide + d, load(d_weight + w * wide + d) + own * load(k.seen + (t + w) * wide + d));
        }
        for (int64_t t = 0; t < steps; ++t) {
            for (int64_t d = 0; d < wide; d += LANES<T>) {
                Vec<T> total{};
                const int64_t beyond = first + t + past - (k.length - 1);  // weights that would meet steps after the last
                for (int64_t w = beyond > 0 ? beyond : 0; w <= past; ++w)
                    total += load(k.weight + w * wide + d) * load(d_sums + (t + past - w) * wide + d);
                store(d_x + d, total);
            }
            const int64_t kept = first + t - (k.length - past);
            for (int64_t d = 0; all.d_final && kept >= 0 && d < k.width; ++d)
                d_x[d] += *all.d_final.at<T>(k.s, k.first_channel + d, kept);
            k.write_row(all.d_x, first + t, d_x);
        }
    }
    for (int64_t d = 0; d < k.width; ++d) {
        for (int64_t i = 0; i < past; ++i) {
            T total = all.d_final && i >= k.length ? *all.d_final.at<T>(k.s, k.first_channel + d, i - k.length) : 0;
            for (int64_t w = i < k.length ? 0 : i - k.length + 1; w <= i; ++w) total += k.weight[w * wide + d] * d_sums[(i - w) * wide + d];
            *all.d_initial.at<T>(k.s, k.first_channel + d, i) = total;
        }
        for (int64_t w = 0; w < all.taps; ++w) *all.d_weight.at<T>(k.s, k.first_channel + d, w) = d_weight[w * wide + d];
        if (all.bias) *all.d_bias.at<T>(k.s, k.first_channel + d) = d_bias[d];
    }
}

// Statistics of the window after each step. A row of inputs is summed once and counts in the W - 1 windows it is in.
template <typename T>
class WindowObserver {
  public:
    WindowObserver(const Convolution& all, int64_t s)
        : all_(all), out_(all.statistics), s_(s), past_(all.taps - 1), wide_(round_up(all.channels, LANES<T>)),
          rows_((past_ + 1) * wide_), moments_(past_ + 1) {}

    void run() {
        const int64_t length = all_.sequences.length(s_);
        for (int64_t t = -past_; t < length; ++t) {
            take(t);
            if (t < 0 || !out_.wanted(all_.sequences, s_, t)) continue;
            Moments m;
            for (int64_t i = 0; i < past_; ++i) m.add(moments_[i]);
            double& running = out_.running[s_];
            if (m.finite > running) running = m.finite;
            const int64_t at = out_.place(all_.sequences, s_, t);
            write_moments(out_, at, m, double(all_.channels * past_));
            if (running > 0 && m.finite >= NEAR * (1 - 1e-5) * running) out_.near_largest[at] = count(running);
        }
    }

  private:
    void take(int64_t t) {
        const int64_t slot = past_ ? ((t % past_) + past_) % past_ : 0;
        T* row = rows_ + slot * wide_;
        for (int64_t d = 0; d < all_.channels; ++d)
            row[d] = t < 0 ? *all_.initial.at<T>(s_, d, t + past_)
                           : *all_.x.at<T>(all_.sequences.row(s_), all_.sequences.start(s_) + t, d);
        Vec<T> square{}, largest{}, total{}, log{};
        for (int64_t d = 0; d < wide_; d += LANES<T>) {
            const Vec<T> x = load(row + d), size = magnitude<T>(x), own = x * x;
            square += own, total += x, largest = larger<T>(size, largest);
            if (out_.entropy) log += own * log2_of(size);
        }
        Moments& m = moments_[slot];
        m = Moments{};
        m.square = sum<T>(square), m.sum = sum<T>(total), m.log = sum<T>(log) * (2 * 0.69314718055994530942);
        for (int64_t i = 0; i < LANES<T>; ++i) m.largest = m.largest > largest[i] ? m.largest : largest[i];
        m.finite = m.largest;
        if (!m.extreme()) return;
        m = Moments{};
        for (int64_t d = 0; d < all_.channels; ++d) m.add_unit(row[d]);
    }
    double count(double running) const {
        const T threshold = threshold_of<T>(running);
        double total = 0;
        for (int64_t i = 0; i < past_; ++i)
            for (int64_t d = 0; d < all_.channels; ++d) {
                const T size = std::fabs(rows_[i * wide_ + d]);
                total += size >= threshold && std::isfinite(size);
            }
        return total;
    }

    const Convolution& all_;
    const Statistics& out_;
    const int64_t s_, past_, wide_;
    Buffer<T> rows_;
    Buffer<Moments> moments_;
};
