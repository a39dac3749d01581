// Rows by index: adding to them in the order of the indices, and gathering them.
#include "common.cuh"

#define THREADS 256  // of a block of `index_add`
#define LOOKS 4      // indices that a thread looks at in one round

struct Hit {
  int row, from;  // in the tile; in this round's part of the indices
};

// y (height, width) = 0, then y[rows[i], :] += values[i, :] for i = 0, 1, ..., as numpy.add.at does it: each sum is taken in that order,
// whatever the order in which blocks run. Negative rows count from the end; those that are outside are left out, and `outside` set.
//
// A block owns `tile` rows of y and `columns` columns, and a thread one of these columns in each so manieth row. The block looks through all
// indices; those of its own rows it lists in shared memory, in their order, and every thread adds what is its own. No atomics, no sorting,
// and nothing is written but y. The price is that every block reads every index, so there are few blocks (gpuprop/cuda/indexing.py).
template <typename T, typename A, typename I>
__device__ __forceinline__ void index_add(
    const long long* rows, const T* values, A* y, I count, I height, I width, I tile, int columns, int* outside) {
  __shared__ Hit hits[THREADS * LOOKS];
  __shared__ int found[THREADS / 32];  // hits of each warp
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const I strips = (width + columns - 1) / columns, top = I(blockIdx.x) / strips * tile;
  const I column = I(blockIdx.x) % strips * columns + threadIdx.x % columns;
  const int alike = THREADS / columns, mine = threadIdx.x / columns;  // threads of one column; which of them this one is
  const bool works = mine < alike && column < width;
  const int own = int(height - top < tile ? height - top : tile);
  y += top * width + column;
  if (works)
    for (int row = mine; row < own; row += alike) y[row * width] = A(0);

  int row = -1;  // whose sum so far is in `sum` and not in y: rows that come several times in a row stay in a register
  A sum = 0;
  for (I start = 0; start < count; start += THREADS * LOOKS) {
    int at[LOOKS], before = 0;  // row in the tile, or -1; hits of lanes and looks before this one's
    unsigned int votes[LOOKS];
#pragma unroll
    for (int k = 0; k < LOOKS; ++k) {
      const I i = start + (warp * LOOKS + k) * 32 + lane;
      at[k] = -1;
      if (i < count) {
        long long r = rows[i];
        if (r < 0) r += height;
        if (r >= top && r < top + own) at[k] = int(r - top);
        if (blockIdx.x == 0 && (r < 0 || r >= height)) atomicOr(outside, 1);
      }
      votes[k] = __ballot_sync(0xffffffffu, at[k] >= 0);
    }
    int of_warp = 0;
#pragma unroll
    for (int k = 0; k < LOOKS; ++k) of_warp += __popc(votes[k]);
    if (lane == 0) found[warp] = of_warp;
    __syncthreads();
    int hit_count = 0;
#pragma unroll
    for (int w = 0; w < THREADS / 32; ++w) {
      if (w == warp) before = hit_count;
      hit_count += found[w];
    }
#pragma unroll
    for (int k = 0; k < LOOKS; ++k) {
      if (at[k] >= 0) hits[before + __popc(votes[k] & ((1u << lane) - 1))] = Hit{at[k], (warp * LOOKS + k) * 32 + lane};
      before += __popc(votes[k]);
    }
    __syncthreads();
    for (int h = 0; h < hit_count; ++h) {
      const Hit hit = hits[h];
      if (works && hit.row % alike == mine) {
        if (hit.row != row) {
          if (row >= 0) y[row * width] = sum;
          row = hit.row;
          sum = y[row * width];
        }
        sum += widen<A>(values[(start + hit.from) * width + column]);
      }
    }
    // The next round's writes of `found` come after this round's reads (the second barrier above), those of `hits` after the first barrier
    // of the next round, which no thread passes before all are here.
  }
  if (row >= 0) y[row * width] = sum;
}

// --- Gathering ------------------------------------------------------------------------------------------------------

template <typename T, int count> struct alignas(count * sizeof(T)) Chunk {
  T at[count];
};

struct AsItIs {
  template <typename T> __device__ __forceinline__ T operator()(T x) const { return x; }
};
template <typename T, typename A> struct Scaled {
  A scale, shift;
  template <typename S> __device__ __forceinline__ T operator()(S x) const { return narrow<T>(A(x) * scale + shift); }
};

// y[i, :] = f(x[rows[i], :]), x (height, columns): `lanes` neighbouring threads share a row, and take `size` columns at a time, which divides
// the columns. Negative rows count from the end; for one that is outside row 0 is taken, and `outside` set.
template <int size, typename S, typename T, typename I, typename F>
__device__ __forceinline__ void gather_rows(
    const S* x, const long long* rows, T* y, I count, I height, I columns, int lanes, int* outside, F f) {
  const I stride = I(gridDim.x) * blockDim.x / lanes;
  const int lane = threadIdx.x % lanes;
  for (I i = (I(blockIdx.x) * blockDim.x + threadIdx.x) / lanes; i < count; i += stride) {
    long long row = rows[i];
    if (row < 0) row += height;
    if (row < 0 || row >= height) {
      if (lane == 0) atomicOr(outside, 1);
      row = 0;
    }
    const Chunk<S, size>* from = reinterpret_cast<const Chunk<S, size>*>(x + I(row) * columns);
    Chunk<T, size>* to = reinterpret_cast<Chunk<T, size>*>(y + i * columns);
    for (I k = lane; k < columns / size; k += lanes) {
      const Chunk<S, size> in = from[k];
      Chunk<T, size> out;
#pragma unroll
      for (int j = 0; j < size; ++j) out.at[j] = f(in.at[j]);
      to[k] = out;
    }
  }
}

#undef THREADS
#undef LOOKS
