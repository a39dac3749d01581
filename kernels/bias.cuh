// The loops of a bias and an activation in one pass: x is (rows, columns), bias (columns). Functors are those of elementwise.cuh.
#pragma once
#include "common.cuh"

// y = f(x + bias); y may be x. `width` columns at a time: a pack, or one where packs do not divide the columns.
template <typename F, typename T, typename I, int width>
__device__ __forceinline__ void bias_forward(const T* x, const T* bias, T* y, I rows, I columns, F f) {
  typedef typename Arithmetic<T>::type A;
  const I groups = columns / width, stride = I(gridDim.x) * blockDim.x;
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * groups; i += stride) {
    const I column = i % groups * width, at = i * width;
    if (width > 1) {
      const Pack<T> p = load_pack(x + at), b = load_pack(bias + column);
      Pack<T> result;
#pragma unroll
      for (int k = 0; k < Pack<T>::size; ++k) result.at[k] = narrow<T>(f.forward(widen<A>(p.at[k]) + widen<A>(b.at[k])));
      store_pack(y + at, result);
    } else {
      y[at] = narrow<T>(f.forward(widen<A>(x[at]) + widen<A>(bias[column])));
    }
  }
}

// dx = dy f'(kept), db = the column sums of dx: one pass, one launch. dx may be dy.
//
// kept is y, or (keeps_x) x without the bias, which is added again. Blocks are (32 lanes, 8 warps) and the grid (stripes of 32 * width
// columns, parts of the rows): a warp reads whole lines. Each block writes its sums to `partial` (parts, columns); the last block of a
// stripe adds them up in order, so that the result does not depend on who was last.
template <typename F, typename T, typename I, int width, bool keeps_x>
__device__ __forceinline__ void bias_backward(const T* dy, const T* kept, const T* bias, T* dx, typename Arithmetic<T>::type* partial, T* db,
                                              unsigned int* tickets, I rows, I columns, int accumulate, F f) {
  typedef typename Arithmetic<T>::type A;
  const int warps = 8, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const I column = (I(blockIdx.x) * 32 + lane) * width;
  A sum[width], add[width];
  Pack<T> b;
  if (keeps_x && column < columns) {
    if (width > 1) b = load_pack(bias + column);
    else b.at[0] = bias[column];
  }
#pragma unroll
  for (int k = 0; k < width; ++k) {
    sum[k] = A(0);
    add[k] = keeps_x && column < columns ? widen<A>(b.at[k]) : A(0);
  }
  if (column < columns) {
    for (I row = I(blockIdx.y) * warps + warp; row < rows; row += I(gridDim.y) * warps) {
      const I at = (row * (columns / width) + column / width) * width;  // as a multiple of packs: else 64-bit stores come apart
      if (width > 1) {
        const Pack<T> p = load_pack(dy + at), q = load_pack(kept + at);
        Pack<T> result;
#pragma unroll
        for (int k = 0; k < width; ++k) {
          const A value = f.backward(widen<A>(p.at[k]), keeps_x ? widen<A>(q.at[k]) + add[k] : widen<A>(q.at[k]));
          result.at[k] = narrow<T>(value);
          sum[k] += value;
        }
        store_pack(dx + at, result);
      } else {
        const A value = f.backward(widen<A>(dy[at]), keeps_x ? widen<A>(kept[at]) + add[0] : widen<A>(kept[at]));
        dx[at] = narrow<T>(value);
        sum[0] += value;
      }
    }
  }
  __shared__ A room[warps][32 * width];
#pragma unroll
  for (int k = 0; k < width; ++k) room[warp][lane * width + k] = sum[k];
  __syncthreads();
  const I first = I(blockIdx.x) * 32 * width;
  for (int c = threadIdx.x; c < 32 * width && first + c < columns; c += blockDim.x) {
    A total = room[0][c];
    for (int w = 1; w < warps; ++w) total += room[w][c];
    partial[I(blockIdx.y) * columns + first + c] = total;
  }
  if (last_block(tickets + blockIdx.x, gridDim.y)) {
    for (int c = threadIdx.x; c < 32 * width && first + c < columns; c += blockDim.x) {
      A total = A(0);
      for (unsigned int part = 0; part < gridDim.y; ++part) total += partial[I(part) * columns + first + c];
      db[first + c] = narrow<T>(accumulate ? widen<A>(db[first + c]) + total : total);
    }
  }
}
