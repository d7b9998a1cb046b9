// Vectors of one instruction set: this file is included once for each, inside a namespace of its own, with VECTOR_BYTES
// set. GCC's and Clang's vector extensions do the arithmetic; what they lack (exp2, log2) is here.

template <typename T>
struct Simd;

template <>
struct Simd<float> {
    typedef float vec __attribute__((vector_size(VECTOR_BYTES)));
    typedef float loose __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
    typedef int32_t ivec __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int64_t lanes = VECTOR_BYTES / 4;
};

template <>
struct Simd<double> {
    typedef double vec __attribute__((vector_size(VECTOR_BYTES)));
    typedef double loose __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
    typedef int64_t ivec __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int64_t lanes = VECTOR_BYTES / 8;
};

template <typename T>
using Vec = typename Simd<T>::vec;
template <typename T>
using IntVec = typename Simd<T>::ivec;
template <typename T>
constexpr int64_t LANES = Simd<T>::lanes;

template <typename T>
INLINE Vec<T> load(const T* from) {
    return *reinterpret_cast<const typename Simd<T>::loose*>(from);
}

template <typename T>
INLINE void store(T* to, Vec<T> value) {
    *reinterpret_cast<typename Simd<T>::loose*>(to) = value;
}

template <typename T>
INLINE Vec<T> spread(T value) {
    return value - Vec<T>{};  // unlike + this keeps the sign of zero
}

template <typename T>
INLINE T sum(Vec<T> value) {  // always in the same order
    T total = 0;
    for (int64_t i = 0; i < LANES<T>; ++i) total += value[i];
    return total;
}

template <typename T>
INLINE Vec<T> magnitude(Vec<T> x) {
    constexpr auto mask = ~(decltype(IntVec<T>{}[0] + 0))0;
    constexpr auto sign = (decltype(mask))((typename std::make_unsigned<decltype(IntVec<T>{}[0] + 0)>::type)1
                                           << (8 * sizeof(T) - 1));
    IntVec<T> bits = (IntVec<T>)x & ~(IntVec<T>{} + sign);
    return (Vec<T>)bits;
}

// The larger one; the second where either is NaN (one instruction).
template <typename T>
INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
    return a > b ? a : b;
}

INLINE Vec<float> rounded(Vec<float> x) {
#if VECTOR_BYTES == 64
    return (Vec<float>)_mm512_roundscale_ps((__m512)x, 0);
#else
    const Vec<float> shifted = x + spread(12582912.f);  // 1.5 * 2^23: adding it rounds to a whole number
    return shifted - spread(12582912.f);
#endif
}

INLINE Vec<float> clamped(Vec<float> x, float least, float most) {  // NaN stays
    x = spread(least) > x ? spread(least) : x;
    return spread(most) < x ? spread(most) : x;
}

// 2^(whole + f) for -0.5 <= f <= 0.5, also where that is below the smallest normal number, or too large.
INLINE Vec<float> power_of_2(Vec<float> whole, Vec<float> f) {
    using V = Vec<float>;
    V p = spread(0.001326472731307149f);  // least largest relative error of degree 5 with p(0) = 1: 9e-8
    p = p * f + spread(0.009671512991189957f);
    p = p * f + spread(0.05550733581185341f);
    p = p * f + spread(0.24022242426872253f);
    p = p * f + spread(0.6931470036506653f);
    p = p * f + spread(1.f);
#if VECTOR_BYTES == 64
    return (V)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    const IntVec<float> n = __builtin_convertvector(whole, IntVec<float>);  // NaN gives any number here: p is NaN then
    const IntVec<float> half = n >> 1;                                      // two factors, so that each is normal
    return p * (V)((half + 127) << 23) * (V)((n - half + 127) << 23);
#endif
}

// 2^x with a relative error of 1e-7 (that of x itself apart); NaN and infinities included.
INLINE Vec<float> exp2_of(Vec<float> x) {
#if VECTOR_BYTES == 64
    const Vec<float> f = (Vec<float>)_mm512_reduce_ps((__m512)x, 0);  // x - rounded(x); 0 for infinities
    return power_of_2(rounded(x), f);
#else
    x = clamped(x, -160.f, 200.f);
    const Vec<float> whole = rounded(x);
    return power_of_2(whole, x - whole);
#endif
}

// e^x with a relative error of 1e-7 wherever that is normal: what x log2(e) loses by rounding is kept apart.
INLINE Vec<float> exp_of(Vec<float> x) {
    x = clamped(x, -110.f, 140.f);
    const Vec<float> whole = rounded(x * spread(1.4426950408889634f));
    const Vec<float> near = x - whole * spread(0.693145751953125f);  // ln 2 in two parts, the first exact times `whole`
    const Vec<float> rest = near - whole * spread(1.4286068203094172e-06f);
    return power_of_2(whole, rest * spread(1.4426950408889634f));
}

INLINE Vec<double> exp2_of(Vec<double> x) {  // float64 is here to be checked against, not to be fast
    for (int64_t i = 0; i < LANES<double>; ++i) x[i] = std::exp2(x[i]);
    return x;
}

INLINE Vec<double> exp_of(Vec<double> x) {
    for (int64_t i = 0; i < LANES<double>; ++i) x[i] = std::exp(x[i]);
    return x;
}

// log2 of positive normal numbers with an absolute error of 3e-6; something finite for 0.
INLINE Vec<float> log2_of(Vec<float> x) {
    using V = Vec<float>;
    IntVec<float> bits = (IntVec<float>)x;
    IntVec<float> exponent = (bits - 0x3f3504f3) >> 23;  // so that the mantissa is in sqrt(1/2) .. sqrt(2)
    V m = (V)(bits - (exponent << 23)) - spread(1.f);
    V p = spread(-0.20659145712852478f);  // least largest error of degree 6 with p(0) = 0: 2e-6
    p = p * m + spread(0.3221547305583954f);
    p = p * m + spread(-0.3674900233745575f);
    p = p * m + spread(0.4793480336666107f);
    p = p * m + spread(-0.7211318612098694f);
    p = p * m + spread(1.4427134990692139f);
    return p * m + __builtin_convertvector(exponent, V);
}

INLINE Vec<double> log2_of(Vec<double> x) {
    for (int64_t i = 0; i < LANES<double>; ++i) x[i] = x[i] > 0 ? std::log2(x[i]) : -1100.0;
    return x;
}
