// Columns of a (rows, columns) array in C order. A block works on a stripe of columns: `lanes` neighbouring threads take W columns each, a
// whole line of memory where columns are many; and on a part of the rows, `height` of them, which its threads share. The grid is (stripes,
// parts).
#pragma once
#include "common.cuh"

#define THREADS 256  // of a block

template <typename T, typename I, int W> struct Stripe {
  typedef typename Arithmetic<T>::type A;
  I rows, columns, column, top;   // column: the first of this thread's; top: the block's first row
  int lanes, groups, group, own;  // how many threads share a column, which of them this one is, and the block's rows

  __device__ __forceinline__ Stripe(I rows_, I columns_, int height, int lanes_)
      : rows(rows_),
        columns(columns_),
        column((I(blockIdx.x) * lanes_ + threadIdx.x % lanes_) * W),
        top(I(blockIdx.y) * height),
        lanes(lanes_),
        groups(THREADS / lanes_),
        group(threadIdx.x / lanes_),
        own(rows_of(blockIdx.y, height)) {}

  __device__ __forceinline__ bool works() const { return column < columns; }
  __device__ __forceinline__ int rows_of(unsigned int part, int height) const {
    const I left = rows - I(part) * height;
    return left < height ? int(left) : height;
  }
  // As a multiple of W: else accesses come apart.
  __device__ __forceinline__ I at(int row) const { return ((top + row) * (columns / W) + column / W) * W; }

  // The numbers of this thread's columns, of the array's type or of what it computes in; `otherwise` where there are none.
  template <typename S> __device__ __forceinline__ void numbers(const S* from, A (&to)[W], A otherwise = A(0)) const {
    const int access = W < Pack<S>::size ? W : Pack<S>::size;
#pragma unroll
    for (int k = 0; k < W; ++k) to[k] = otherwise;
    if (from && works()) {
#pragma unroll
      for (int k = 0; k < W; k += access) {
        const Part<S, access> some = load_part<access>(from + column + k);
#pragma unroll
        for (int i = 0; i < access; ++i) to[k + i] = widen<A>(some.at[i]);
      }
    }
  }

  // Calls f(place of W elements) for each row of this thread.
  template <typename F> __device__ __forceinline__ void each(F f) const {
    if (works())
      for (int row = group; row < own; row += groups) f(at(row));
  }

  // Adds up the `values` that each thread has of its columns, first in the block, then over all parts, and calls f(column, sum) once per
  // column, in the last block of the stripe. The order is fixed, whichever block is last. partials: (parts, S::size, columns); S: Sums or
  // Moments.
  template <typename S, typename F>
  __device__ __forceinline__ void total(const A (&values)[S::size][W], A* partials, unsigned int* tickets, int height, F f) const {
    __shared__ A room[S::size][THREADS * W];
#pragma unroll
    for (int j = 0; j < S::size; ++j)
#pragma unroll
      for (int k = 0; k < W; ++k) room[j][threadIdx.x * W + k] = values[j][k];
    __syncthreads();
    const int width = lanes * W;  // of the stripe
    const I begin = I(blockIdx.x) * width;
    for (int c = threadIdx.x; c < width && begin + c < columns; c += THREADS) {
      S sum = S();
      for (int g = 0; g < groups; ++g) {
        A some[S::size];
#pragma unroll
        for (int j = 0; j < S::size; ++j) some[j] = room[j][g * width + c];
        sum.add((own - g + groups - 1) / groups, some);
      }
#pragma unroll
      for (int j = 0; j < S::size; ++j) partials[(I(blockIdx.y) * S::size + j) * columns + begin + c] = sum.at[j];
    }
    if (!last_block(tickets + blockIdx.x, gridDim.y)) return;
    for (int c = threadIdx.x; c < width && begin + c < columns; c += THREADS) {
      S sum = S();
      for (unsigned int part = 0; part < gridDim.y; ++part) {
        A some[S::size];
#pragma unroll
        for (int j = 0; j < S::size; ++j) some[j] = partials[(I(part) * S::size + j) * columns + begin + c];
        sum.add(rows_of(part, height), some);
      }
      f(begin + c, sum);
    }
  }
};

// What `Stripe::total` adds up: for each column `size` numbers, each time from so many rows.
template <typename A, int size_> struct Sums {
  static const int size = size_;
  A at[size];
  __device__ __forceinline__ void add(int, const A (&values)[size]) {
#pragma unroll
    for (int j = 0; j < size; ++j) at[j] += values[j];
  }
};

// A sum, and the sum of the squared distances from the mean, which no difference of large sums gives.
template <typename A> struct Moments {
  static const int size = 2;
  A at[size], count;
  // Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", eq. 1.5.
  __device__ __forceinline__ void add(int rows, const A (&values)[size]) {
    if (rows <= 0) return;
    const A more = A(rows), apart = values[0] / more - (count > A(0) ? at[0] / count : A(0));
    at[1] += values[1] + apart * apart * (count * more / (count + more));
    at[0] += values[0];
    count += more;
  }
};

#undef THREADS
