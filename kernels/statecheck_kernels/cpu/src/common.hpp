// What the kernels of all instruction sets share: the records that cross the C interface, and plain helpers.
#pragma once

#include <cstdint>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <new>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
#define NOINLINE_MEMBER __attribute__((noinline))
#define INLINE_MEMBER inline __attribute__((always_inline))

// A tensor as Python gives it: strides in elements; nothing there if `data` is null.
struct View {
    void* data;
    int64_t stride[4];

    template <typename T>
    T* at(int64_t a, int64_t b = 0, int64_t c = 0, int64_t d = 0) const {
        return static_cast<T*>(data) + a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3];
    }
    explicit operator bool() const { return data != nullptr; }
};

// Which steps belong together: `count` rows of `steps` each, or, if `cu` is there, sequence s of the one row is steps
// cu[s] .. cu[s + 1] and its chunks are counted from first_chunk[s] on.
struct Sequences {
    int64_t count;
    int64_t steps;
    const int64_t* cu;
    const int64_t* first_chunk;

    int64_t row(int64_t s) const { return cu ? 0 : s; }
    int64_t start(int64_t s) const { return cu ? cu[s] : 0; }
    int64_t length(int64_t s) const { return cu ? cu[s + 1] - cu[s] : steps; }
    int64_t chunks(int64_t s, int64_t chunk) const { return (length(s) + chunk - 1) / chunk; }
    int64_t chunks_before(int64_t s, int64_t chunk) const { return cu ? first_chunk[s] : s * chunks(0, chunk); }
};

// Statistics of the state after every `every` steps; all (sequence rows, observed steps, heads), contiguous.
struct Statistics {
    int64_t every;
    int64_t entropy;
    double* square_sum;
    double* largest;
    double* mean;
    double* near_largest;
    double* nonfinite;
    double* entropies;
    double* running;  // (sequences, heads)

    explicit operator bool() const { return square_sum != nullptr; }
    // Steps count along the row, over all sequences in it.
    bool wanted(const Sequences& all, int64_t s, int64_t step) const { return (all.start(s) + step + 1) % every == 0; }
    // The place of step `step` of sequence s among the observed ones.
    int64_t place(const Sequences& all, int64_t s, int64_t step) const {
        return all.row(s) * (all.steps / every) + (all.start(s) + step) / every;
    }
};

constexpr double NEAR = 0.99;

// Memory of one unit of work, zeroed, aligned for any vector.
template <typename T>
class Buffer {
  public:
    explicit Buffer(int64_t size) : size_(size) {
        if (size <= 0) return;
        const size_t bytes = (static_cast<size_t>(size) * sizeof(T) + 63) / 64 * 64;
        data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
        if (!data_) throw std::bad_alloc();
        std::memset(static_cast<void*>(data_), 0, bytes);  // zeros are the default of every T here
    }
    ~Buffer() { std::free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    operator T*() const { return data_; }
    void clear() { if (data_) std::memset(data_, 0, size_ * sizeof(T)); }

  private:
    int64_t size_;
    T* data_ = nullptr;
};

// Lines of memory that will be needed soon. They are asked for one by one while arithmetic runs: rows of a head lie too
// far apart for the processor to guess the next, and waiting for each would cost as much as the arithmetic.
class Wanted {
  public:
    explicit Wanted(int64_t most) : lines_(most), most_(most) {}
    void clear() { count_ = asked_ = 0; }
    template <typename T>
    void add(const T* row, int64_t numbers) {
        for (int64_t i = 0; i < numbers && count_ < most_; i += 64 / int64_t(sizeof(T))) lines_[count_++] = row + i;
    }
    INLINE_MEMBER void ask() {
        if (asked_ < count_) __builtin_prefetch(lines_[asked_++], 0, 2);  // into the second cache: the first is full
    }

  private:
    Buffer<const void*> lines_;
    int64_t most_, count_ = 0, asked_ = 0;
};

inline int64_t round_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
