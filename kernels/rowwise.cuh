// Rows of a (rows, columns) array, each worked on by a group of threads: a part of a warp where rows are short, several warps where
// they are long. A thread holds its elements of a row in registers, so that memory is read once; rows that are too long for that are
// read again on each pass.
#pragma once
#include "common.cuh"

// How threads share rows. WIDTH elements are one access (rows begin at multiples of it); a thread has PACKS accesses per row, or, where
// PACKS is 0, as many as it takes.
template <typename T_, int GROUP, int PACKS, int WIDTH, int THREADS> struct Layout {
  typedef T_ T;
  typedef typename Arithmetic<T>::type A;
  static const int group = GROUP, packs = PACKS, width = WIDTH, threads = THREADS;
  static const int side_by_side = THREADS / GROUP;  // rows that a block works on at a time
  static const bool held = PACKS > 0;
  static __device__ __forceinline__ int lane() { return threadIdx.x % GROUP; }
  static __device__ __forceinline__ int column(int pack) { return (pack * GROUP + lane()) * WIDTH; }
};

template <typename T, typename A, bool WIDE> struct Wide { typedef T type; };
template <typename T, typename A> struct Wide<T, A, true> { typedef A type; };

// The same row of INPUTS arrays. BIASED: a bias is added to input 0 as it is read, which has more digits than T.
template <typename L, int INPUTS, bool BIASED = false> struct Row {
  typedef typename L::T T;
  typedef typename L::A A;
  typedef Part<typename Wide<T, A, BIASED>::type, L::width> Some;
  const T *from[INPUTS], *bias;
  int columns;
  Some at[L::held ? L::packs : 1][INPUTS];

  // A row that does not exist is one without columns: the group's threads go on with the others of the block.
  __device__ __forceinline__ void read(const T* const (&arrays)[INPUTS], long long row, long long rows, int columns_) {
    columns = row < rows ? columns_ : 0;
#pragma unroll
    for (int i = 0; i < INPUTS; ++i) from[i] = arrays[i] + row * columns_;
    if constexpr (L::held) {
#pragma unroll
      for (int p = 0; p < L::packs; ++p)
        if (L::column(p) < columns) fetch(L::column(p), at[p]);
    }
  }

  // Calls f(pack, first column, values[width][inputs]) for each access of this thread.
  template <typename F> __device__ __forceinline__ void parts(F f) const {
    if constexpr (L::held) {
#pragma unroll
      for (int p = 0; p < L::packs; ++p)
        if (L::column(p) < columns) hand(p, L::column(p), at[p], f);
    } else {
#pragma unroll 1
      for (int c = L::column(0); c < columns; c += L::group * L::width) {
        Some some[INPUTS];
        fetch(c, some);
        hand(0, c, some, f);
      }
    }
  }

  // Calls f(column, its value in each input).
  template <typename F> __device__ __forceinline__ void each(F f) const {
    parts([&](int, int c, const A(&values)[L::width][INPUTS]) {
#pragma unroll
      for (int k = 0; k < L::width; ++k) f(c + k, values[k]);
    });
  }

  // An element of input 0.
  __device__ __forceinline__ A element(int c) const { return BIASED ? widen<A>(from[0][c]) + widen<A>(bias[c]) : widen<A>(from[0][c]); }

  __device__ __forceinline__ void fetch(int c, Some (&some)[INPUTS]) const {
#pragma unroll
    for (int i = 0; i < INPUTS; ++i) {
      const Part<T, L::width> part = load_part<L::width>(from[i] + c);
      if constexpr (BIASED) {
#pragma unroll
        for (int k = 0; k < L::width; ++k) some[i].at[k] = widen<A>(part.at[k]);
      } else {
        some[i] = part;
      }
    }
    if constexpr (BIASED) {
      const Part<T, L::width> part = load_part<L::width>(bias + c);
#pragma unroll
      for (int k = 0; k < L::width; ++k) some[0].at[k] += widen<A>(part.at[k]);
    }
  }
  template <typename F> static __device__ __forceinline__ void hand(int p, int c, const Some (&some)[INPUTS], F f) {
    A values[L::width][INPUTS];
#pragma unroll
    for (int k = 0; k < L::width; ++k)
#pragma unroll
      for (int i = 0; i < INPUTS; ++i) values[k][i] = widen<A>(some[i].at[k]);
    f(p, c, values);
  }
};

// Calls body(row number) for each round of rows of the block; a group may be left without a row in the last one.
template <typename L, typename Body> __device__ __forceinline__ void over_rows(long long rows, Body body) {
  const long long stride = (long long)gridDim.x * L::side_by_side;
  for (long long first = (long long)blockIdx.x * L::side_by_side; first < rows; first += stride) body(first + threadIdx.x / L::group);
}

// All threads of the block call it; each gets the result of its group. `room` holds 32 values.
template <typename L, typename A, typename Op> __device__ __forceinline__ A group_reduce(A value, Op op, A neutral, A* room) {
  if constexpr (L::group <= 32) {
#pragma unroll
    for (int step = L::group / 2; step > 0; step /= 2) value = op(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
  } else {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = L::group / 32;
    value = warp_reduce(value, op);
    __syncthreads();  // `room` may still be read from the call before
    if (lane == 0) room[warp] = value;
    __syncthreads();
    return warp_reduce(lane < warps ? room[warp / warps * warps + lane] : neutral, op);
  }
}
template <typename L, typename A> __device__ __forceinline__ A group_sum(A value, A* room) {
  return group_reduce<L>(value, Add(), A(0), room);
}

// --- Exponentials of a row ------------------------------------------------------------------------------------------

template <typename T> struct Limit;  // the largest finite number
template <> struct Limit<float> { static __device__ float value() { return 3.402823466e38f; } };
template <> struct Limit<double> { static __device__ double value() { return 1.7976931348623157e308; } };
#ifdef GPUPROP_HALF
template <> struct Limit<__half> { static __device__ float value() { return 65504.0f; } };
#endif
#ifdef GPUPROP_BFLOAT16
template <> struct Limit<__nv_bfloat16> { static __device__ float value() { return 3.3e38f; } };
#endif

// x minus the row's maximum, made finite: an infinite x keeps all of the sum, and -inf has nothing of it.
template <typename T, typename A> __device__ __forceinline__ A finite(A x) {
  const A limit = Limit<T>::value();
  return x > limit ? limit : x < -limit ? -limit : x;  // NaN stays NaN
}
template <typename A> __device__ __forceinline__ A below(A x, A shift) {
  const A difference = x - shift;
  return difference > A(0) ? A(0) : difference;
}

template <typename A> struct Exponentials {
  A largest, shift, sum;  // sum of exp(below(x, shift)), shift = finite(largest)
};

// Of input 0. Long rows are read once: the sum is scaled down whenever a larger element comes.
template <typename L, int INPUTS, bool BIASED, typename A>
__device__ __forceinline__ Exponentials<A> exponentials(const Row<L, INPUTS, BIASED>& row, A* room) {
  typedef typename L::T T;
  const A lowest = -A(1) / A(0);
  A largest = lowest, sum = A(0), shift;
  if constexpr (L::held) {
    row.each([&](int, const A* x) { largest = Max()(largest, x[0]); });
    largest = group_reduce<L>(largest, Max(), lowest, room);
    shift = finite<T>(largest);
    row.each([&](int, const A* x) { sum += exp(below(x[0], shift)); });
  } else {
    row.parts([&](int, int, const A(&x)[L::width][INPUTS]) {
      A top = largest;
#pragma unroll
      for (int k = 0; k < L::width; ++k) top = Max()(top, x[k][0]);
      const A up = finite<T>(top);
      sum *= exp(finite<T>(largest) - up);
#pragma unroll
      for (int k = 0; k < L::width; ++k) sum += exp(below(x[k][0], up));
      largest = top;
    });
    const A own = finite<T>(largest);
    largest = group_reduce<L>(largest, Max(), lowest, room);
    shift = finite<T>(largest);
    sum *= exp(own - shift);
  }
  return {largest, shift, group_sum<L>(sum, room)};
}
