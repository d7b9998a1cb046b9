// Every kernel for one instruction set. No include guard: it is included once for each, in a namespace of its own.
#include "simd.hpp"
#include "tile.hpp"
#include "moments_of_lanes.hpp"
#include "outer.hpp"
#include "sources.hpp"
#include "selective.hpp"
#include "convolution.hpp"

// What a call of the C interface asks for, unit by unit of the work.
template <typename T>
struct Kernels {
    static void wkv6_forward(const void* p, int64_t unit) { outer_forward<T>(*static_cast<const Wkv6*>(p), unit); }
    static void wkv6_backward(const void* p, int64_t unit) { Backward<T, Wkv6>(*static_cast<const Wkv6*>(p), unit).run(); }
    static void ssd_forward(const void* p, int64_t unit) { outer_forward<T>(*static_cast<const Ssd*>(p), unit); }
    static void ssd_backward(const void* p, int64_t unit) {
        const Ssd& ssd = *static_cast<const Ssd*>(p);
        for (int64_t i = 0; i < ssd.heads_of_part(); ++i) Backward<T, Ssd>(ssd, unit * ssd.heads_of_part() + i).run();
    }
    static void selective_forward(const void* p, int64_t unit) { scan_forward<T>(*static_cast<const Scan*>(p), unit); }
    static void selective_count(const void* p, int64_t unit) { scan_count<T>(*static_cast<const Scan*>(p), unit); }
    static void selective_backward(const void* p, int64_t unit) { ScanBackward<T>(*static_cast<const Scan*>(p), unit).run(); }
    static void conv_forward(const void* p, int64_t unit) { convolution_forward<T>(*static_cast<const Convolution*>(p), unit); }
    static void conv_backward(const void* p, int64_t unit) { convolution_backward<T>(*static_cast<const Convolution*>(p), unit); }
    static void conv_windows(const void* p, int64_t unit) { WindowObserver<T>(*static_cast<const Convolution*>(p), unit).run(); }
};
