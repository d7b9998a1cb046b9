// The C interface of the compiled recurrences, and the choice of instruction set. See outer.hpp, selective.hpp and
// convolution.hpp for the mathematics. No Python and no torch in here: ctypes calls these functions.
#include "common.hpp"
#include "moments.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef STATECHECK_SOURCE_HASH
#define STATECHECK_SOURCE_HASH "unknown"
#endif
#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

// The kernels once for each instruction set, each in its namespace; `base` is what the compiler assumes by itself.
namespace base {
#define VECTOR_BYTES 16
#include "kernels.hpp"
#undef VECTOR_BYTES
}  // namespace base

#if defined(__x86_64__) && defined(__GNUC__) && !defined(STATECHECK_BASE_ONLY)
#define WITH_X86 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
#endif
namespace v3 {
#define VECTOR_BYTES 32
#include "kernels.hpp"
#undef VECTOR_BYTES
}  // namespace v3
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,avx512f,avx512dq,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
#endif
namespace v4 {
#define VECTOR_BYTES 64
#include "kernels.hpp"
#undef VECTOR_BYTES
}  // namespace v4
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace {

using Task = void (*)(const void* problem, int64_t unit);

// One table of kernels; float64 runs on `base` alone, it is there to be checked against.
struct Table {
    Task wkv6_forward, wkv6_backward, ssd_forward, ssd_backward;
    Task selective_forward, selective_count, selective_backward, conv_forward, conv_backward, conv_windows;
};

template <typename K>
constexpr Table table() {
    return {K::wkv6_forward,      K::wkv6_backward,   K::ssd_forward,        K::ssd_backward, K::selective_forward,
            K::selective_count,   K::selective_backward, K::conv_forward, K::conv_backward, K::conv_windows};
}

// 0: what the machine has; 1, 2, 3: base, v3, v4, for tests and benchmarks.
int asked = 0;

int level() {
#ifdef WITH_X86
    static const int best = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
                                ? 3
                            : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 2
                                                                                              : 1;
#else
    static const int best = 1;
#endif
    return asked && asked < best ? asked : best;
}

const Table& kernels(bool float64) {
    static const Table wide = table<base::Kernels<double>>(), narrow = table<base::Kernels<float>>();
    if (float64) return wide;
#ifdef WITH_X86
    static const Table with_v3 = table<v3::Kernels<float>>(), with_v4 = table<v4::Kernels<float>>();
    if (level() == 3) return with_v4;
    if (level() == 2) return with_v3;
#endif
    return narrow;
}

// Every unit once. What a unit computes does not depend on the thread it runs on. 0, or 1 when memory ran out.
int run(Task task, const void* problem, int64_t units, int64_t threads) {
    int failed = 0;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(threads)) if (threads > 1 && units > 1)
#endif
    for (int64_t unit = 0; unit < units; ++unit) {
        try {
            task(problem, unit);
        } catch (const std::bad_alloc&) {
#ifdef _OPENMP
#pragma omp atomic write
#endif
            failed = 1;
        }
    }
    return failed;
}

}  // namespace

EXPORT const char* sk_source_hash() { return STATECHECK_SOURCE_HASH; }

EXPORT const char* sk_instruction_set() {
#ifdef WITH_X86
    return level() == 3 ? "x86-64-v4" : level() == 2 ? "x86-64-v3" : "x86-64";
#elif defined(__aarch64__)
    return "aarch64";
#else
    return "generic";
#endif
}

// Use at most this instruction set from now on (1 base, 2 v3, 3 v4, 0 the best); returns the one used.
EXPORT int sk_limit_instruction_set(int most) {
    asked = most;
    return level();
}

// Threads that a call may use by default; 1 without OpenMP.
EXPORT int sk_threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

EXPORT int64_t sk_outer_chunk(int64_t K, int64_t V) { return base::chunk_of(K, V); }
EXPORT int64_t sk_scan_chunk() { return base::SCAN_CHUNK; }
EXPORT int64_t sk_blocks(int64_t channels) { return base::Scan{{}, channels}.blocks(); }
EXPORT int64_t sk_saved_width(int64_t channels) { return base::Scan{{}, channels}.saved_width(); }

EXPORT int sk_wkv6_forward(const base::Wkv6* p, int float64, int64_t threads) {
    return run(kernels(float64).wkv6_forward, p, p->sequences.count * p->shape.heads, threads);
}

EXPORT int sk_wkv6_backward(const base::Wkv6* p, int float64, int64_t threads) {
    return run(kernels(float64).wkv6_backward, p, p->sequences.count * p->shape.heads, threads);
}

EXPORT int sk_ssd_forward(const base::Ssd* p, int float64, int64_t threads) {
    return run(kernels(float64).ssd_forward, p, p->sequences.count * p->shape.heads, threads);
}

EXPORT int sk_ssd_backward(const base::Ssd* p, int float64, int64_t threads) {
    return run(kernels(float64).ssd_backward, p, p->sequences.count * p->groups * p->parts, threads);
}

EXPORT int sk_selective_forward(const base::Scan* p, int float64, int64_t threads) {
    const int64_t units = p->sequences.count * p->blocks();
    if (run(kernels(float64).selective_forward, p, units, threads)) return 1;
    if (!p->statistics) return 0;
    for (int64_t s = 0; s < p->sequences.count; ++s) scan_thresholds(*p, s);
    if (run(kernels(float64).selective_count, p, units, threads)) return 1;
    for (int64_t s = 0; s < p->sequences.count; ++s) scan_counted(*p, s);
    return 0;
}

EXPORT int sk_selective_backward(const base::Scan* p, int float64, int64_t threads) {
    return run(kernels(float64).selective_backward, p, p->sequences.count * p->blocks(), threads);
}

EXPORT int sk_convolution_forward(const base::Convolution* p, int float64, int64_t threads) {
    if (run(kernels(float64).conv_forward, p, p->sequences.count * p->blocks(), threads)) return 1;
    if (!p->statistics) return 0;
    return run(kernels(float64).conv_windows, p, p->sequences.count, threads);
}

EXPORT int sk_convolution_backward(const base::Convolution* p, int float64, int64_t threads) {
    return run(kernels(float64).conv_backward, p, p->sequences.count * p->blocks(), threads);
}
