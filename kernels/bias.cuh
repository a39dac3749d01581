// The loops of a bias and an activation in one pass: x is (rows, columns), bias (columns). Functors are those of elementwise.cuh.
#pragma once
#include "column_sums.cuh"

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
// kept is y, or (keeps_x) x without the bias, which is added again.
template <typename F, typename T, typename I, int width, bool keeps_x>
__device__ __forceinline__ void bias_backward(const T* dy, const T* kept, const T* bias, T* dx, typename Arithmetic<T>::type* partial, T* db,
                                              unsigned int* tickets, I rows, I columns, int accumulate, F f) {
  typedef typename Arithmetic<T>::type A;
  const ColumnStripe<I, width> stripe(columns);
  A sum[width], add[width];
  Part<T, width> b;
  if (keeps_x && stripe.y < stripe.down) b = load_part<width>(bias + stripe.column());
#pragma unroll
  for (int k = 0; k < width; ++k) {
    sum[k] = A(0);
    add[k] = keeps_x ? widen<A>(b.at[k]) : A(0);
  }
  stripe.over_rows(rows, [&](I at) {
    const Part<T, width> p = load_part<width>(dy + at), q = load_part<width>(kept + at);
    A result[width];
#pragma unroll
    for (int k = 0; k < width; ++k) {
      result[k] = f.backward(widen<A>(p.at[k]), keeps_x ? widen<A>(q.at[k]) + add[k] : widen<A>(q.at[k]));
      sum[k] += result[k];
    }
    store_part(dx + at, result);
  });
  sum_columns(stripe, sum, partial, tickets, db, accumulate);
}
