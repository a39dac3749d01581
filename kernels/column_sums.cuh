// Sums of the columns of a (rows, columns) array, made while its elements pass: in one launch, and always in the same order.
#pragma once
#include "common.cuh"

// How 256 threads share a stripe of columns: `across` of them side by side, with W columns each, and as many rows of them below as there
// are threads for. The grid is (stripes of 32 * W columns, parts of the rows).
template <typename I, int W> struct ColumnStripe {
  static const int threads = 256;
  I columns, first;  // first: of the stripe
  int across, down, x, y;

  __device__ __forceinline__ explicit ColumnStripe(I columns) : columns(columns), first(I(blockIdx.x) * (32 * W)) {
    across = columns - first < 32 * W ? int(columns - first) / W : 32;
    lay_out();
  }
  __device__ __forceinline__ void lay_out() {
    down = threads / across;
    x = int(threadIdx.x) % across;
    y = int(threadIdx.x) / across;
  }

  // Calls f(index of the first of W elements in a row) for each row of this thread.
  template <int UNROLL = 4, typename F> __device__ __forceinline__ void over_rows(I rows, F f) const {
    if (y >= down) return;
    const I groups = columns / W, group = first / W + x;
#pragma unroll UNROLL
    for (I row = I(blockIdx.y) * down + y; row < rows; row += I(gridDim.y) * down)
      f((row * groups + group) * W);  // as a multiple of packs: else 64-bit stores come apart
  }
  __device__ __forceinline__ I column() const { return first + x * W; }
};

// Adds up what threads below one another have put into room[k][threadIdx.x]: room[k][x] is then the sum of column x * V + k.
template <int V, int THREADS, typename A> __device__ __forceinline__ void add_below(A (*room)[THREADS], int across, int down, int y) {
  __syncthreads();
  int half = 1;
  while (2 * half < down) half *= 2;
  for (; half > 0; half /= 2) {
    if (y < half && y + half < down) {
#pragma unroll
      for (int k = 0; k < V; ++k) room[k][threadIdx.x] += room[k][threadIdx.x + half * across];
    }
    __syncthreads();
  }
}

// The sums of V columns over the parts of `partials` (parts, columns), which threads below one another share; in those with y == 0.
template <int V, int THREADS, typename I, typename A>
__device__ __forceinline__ void add_parts(A (&total)[V], const A* partials, A (*room)[THREADS], I column, I columns, int parts, int across, int down,
                                          int y) {
#pragma unroll
  for (int k = 0; k < V; ++k) total[k] = A(0);
  if (y < down && column < columns) {
#pragma unroll 4
    for (int part = y; part < parts; part += down) {
      const Part<A, V> some = load_part<V>(partials + I(part) * columns + column);
#pragma unroll
      for (int k = 0; k < V; ++k) total[k] += some.at[k];
    }
  }
  __syncthreads();  // `room` may still be read
#pragma unroll
  for (int k = 0; k < V; ++k) room[k][threadIdx.x] = total[k];
  add_below<V>(room, across, down, y);
#pragma unroll
  for (int k = 0; k < V; ++k) total[k] = room[k][threadIdx.x];
}

// The sums of the stripe's columns over all its blocks, written to `sums` or added to them. Each block writes its own to `partials`
// (parts, columns); the last one of the stripe adds them up, so that the result does not depend on which it is. room: of each thread's sums.
template <typename T, typename I, int W, typename A>
__device__ __forceinline__ void sum_columns(ColumnStripe<I, W> stripe, A (&room)[W][256], A* partials, unsigned int* tickets, T* sums, int accumulate) {
  const int V = W == 1 ? 1 : Pack<A>::size;  // of the arithmetic type, a pack has fewer elements than one of 16-bit numbers
  add_below<W>(room, stripe.across, stripe.down, stripe.y);

  A total[V];
  stripe.across *= W / V;
  stripe.lay_out();
  const I column = stripe.first + stripe.x * V;
#pragma unroll
  for (int k = 0; k < V; ++k) total[k] = room[(stripe.x * V + k) % W][(stripe.x * V + k) / W];
  if (gridDim.y > 1) {
    if (stripe.y == 0) store_part(partials + I(blockIdx.y) * stripe.columns + column, total);
    if (!last_block(tickets + blockIdx.x, gridDim.y)) return;
    add_parts(total, partials, room, column, stripe.columns, int(gridDim.y), stripe.across, stripe.down, stripe.y);
  }
  if (stripe.y == 0) {
#pragma unroll
    for (int k = 0; k < V; ++k) sums[column + k] = narrow<T>(accumulate ? widen<A>(sums[column + k]) + total[k] : total[k]);
  }
}

// The same of sums in registers.
template <typename T, typename I, int W, typename A>
__device__ __forceinline__ void sum_columns(const ColumnStripe<I, W>& stripe, const A (&sum)[W], A* partials, unsigned int* tickets, T* sums,
                                            int accumulate) {
  __shared__ A room[W][256];
#pragma unroll
  for (int k = 0; k < W; ++k) room[k][threadIdx.x] = sum[k];
  sum_columns(stripe, room, partials, tickets, sums, accumulate);
}
