// The statistics of one step.
#pragma once

#include "common.hpp"

// Of the units of one step (of one head, or of one block of channels).
struct Moments {
    double square = 0;
    double largest = 0;  // NaN if any unit is
    double finite = 0;   // the largest finite magnitude
    double sum = 0;
    double log = 0;  // sum of h^2 ln h^2
    double nonfinite = 0;
    double infinite = 0;

    void add(const Moments& other) {
        square += other.square, sum += other.sum, log += other.log;
        nonfinite += other.nonfinite, infinite += other.infinite;
        largest = std::isnan(largest) || largest > other.largest ? largest : other.largest;
        finite = finite > other.finite ? finite : other.finite;
    }
    void add_unit(double h) {
        const double size = std::fabs(h), own = h * h;
        square += own, sum += h;
        if (own > 0) log += own * 2 * std::log(size);
        if (!std::isfinite(h)) ++nonfinite, infinite += std::isinf(h) ? 1 : 0;
        else if (size > finite) finite = size;
        largest = std::isnan(largest) || largest > size ? largest : size;
    }
    // Vectors of float32 add up squares wrongly when those overflow or vanish: such a step is counted again, exactly.
    bool extreme() const { return !(square < 1e30 && largest < 1e15) || (largest > 0 && largest < 1e-15); }
};

// The log term alone says whether the entropy is one of numbers: without a finite sum of squares there is none.
inline double entropy_of(const Moments& m, double units) {
    if (!std::isfinite(m.square) || m.nonfinite > 0) return std::numeric_limits<double>::quiet_NaN();
    if (m.square <= 0 || units < 2) return 0;
    const double nats = std::log(m.square) - m.log / m.square;
    return (nats > 0 ? nats : 0) / std::log(units > 2 ? units : 2);
}

inline void write_moments(const Statistics& out, int64_t at, const Moments& m, double units) {
    out.square_sum[at] = m.square;
    out.largest[at] = m.largest;
    out.mean[at] = units > 0 ? m.sum / units : 0;
    out.nonfinite[at] = m.nonfinite;
    out.near_largest[at] = 0;
    if (out.entropy) out.entropies[at] = entropy_of(m, units);
}
