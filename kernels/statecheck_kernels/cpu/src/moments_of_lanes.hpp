// From the sums that a pass took of the memory, lane by lane, to the moments of each step.

// The least T at or above `share` of `largest`, so that comparing in T is comparing in float64.
template <typename T>
INLINE T threshold_of(double largest) {
    const double exact = NEAR * largest;
    const T rounded = static_cast<T>(exact);
    return rounded < exact ? std::nextafter(rounded, std::numeric_limits<T>::infinity()) : rounded;
}

// Buffers of the sums of one chunk, and which of its steps are looked at.
template <typename T>
struct Observation {
    Buffer<uint8_t> observed, again;
    Buffer<T> threshold, square, largest, log, count;
    Buffer<Moments> moments;
    Sums<T> sums;

    explicit Observation(int64_t steps)
        : observed(steps), again(steps), threshold(steps), square(steps * LANES<T>), largest(steps * LANES<T>),
          log(steps * LANES<T>), count(steps * LANES<T>), moments(steps),
          sums{observed, threshold, square, largest, log, count} {}

    void begin(const Statistics& out, const Sequences& all, int64_t s, int64_t first, int64_t steps) {
        square.clear(), largest.clear(), log.clear(), count.clear();
        for (int64_t t = 0; t < steps; ++t) observed[t] = out.wanted(all, s, first + t);
    }
    // The sums of step t over the lanes.
    Moments gathered(int64_t t, double total) const {
        Moments m;
        for (int64_t lane = 0; lane < LANES<T>; ++lane) {
            m.square += square[t * LANES<T> + lane];
            m.log += log[t * LANES<T> + lane] * (2 * 0.69314718055994530942);
            const double size = largest[t * LANES<T> + lane];
            m.largest = m.largest > size ? m.largest : size;
        }
        m.finite = m.largest, m.sum = total;
        return m;
    }
    double counted(int64_t t) const {
        double total = 0;
        for (int64_t lane = 0; lane < LANES<T>; ++lane) total += count[t * LANES<T> + lane];
        return total;
    }
};
