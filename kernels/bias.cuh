// The loops of a bias and an activation in one pass: x is (rows, columns), bias (columns). Functors are those of elementwise.cuh.
#pragma once
#include "column_sums.cuh"
#include "dropout.cuh"

// y = f(x + bias), then dropout; y may be x. `width` columns at a time: a pack, or one where packs do not divide the columns.
template <typename F, typename T, typename I, int width, typename D = Whole>
__device__ __forceinline__ void bias_forward(const T* x, const T* bias, T* y, I rows, I columns, F f, D dropout = D()) {
  typedef typename Arithmetic<T>::type A;
  const I groups = columns / width, stride = I(gridDim.x) * blockDim.x;
  typename D::template Steps<width> steps(dropout, Word(stride) * width);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * groups; i += stride) {
    const I column = i % groups * width, at = i * width;
    A value[width];
    if (width > 1) {
      const Pack<T> p = load_pack(x + at), b = load_pack(bias + column);
#pragma unroll
      for (int k = 0; k < width; ++k) value[k] = f.forward(widen<A>(p.at[k]) + widen<A>(b.at[k]));
    } else {
      value[0] = f.forward(widen<A>(x[at]) + widen<A>(bias[column]));
    }
    steps.template apply<T>(value, at, at / 8 < rows * columns / 8);
    if (width > 1) {
      Pack<T> result;
#pragma unroll
      for (int k = 0; k < width; ++k) result.at[k] = narrow<T>(value[k]);
      store_pack(y + at, result);
    } else {
      y[at] = narrow<T>(value[0]);
    }
  }
}

// A functor whose gradient names y, for kernels that have x: dropout leaves no y.
template <typename F, typename T> struct FromX : F {
  template <typename A> __device__ __forceinline__ A backward(A dy, A x) const { return F::backward(dy, as_stored<T>(F::forward(x))); }
};

// dx = dy f'(kept), dy having gone back through dropout first; db = the column sums of dx: one pass, one launch. dx may be dy.
//
// kept is y, or (keeps_x) x without the bias, which is added again.
template <typename F, typename T, typename I, int width, bool keeps_x, typename D = Whole>
__device__ __forceinline__ void bias_backward(const T* dy, const T* kept, const T* bias, T* dx, typename Arithmetic<T>::type* partial, T* db,
                                              unsigned int* tickets, I rows, I columns, int accumulate, F f, D dropout = D()) {
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
  typename D::template Steps<width> steps(dropout, Word(gridDim.y) * stripe.down * columns);
  stripe.template over_rows<D::unroll>(rows, [&](I at) {
    const Part<T, width> p = load_part<width>(dy + at), q = load_part<width>(kept + at);
    A d[width], result[width];
#pragma unroll
    for (int k = 0; k < width; ++k) d[k] = widen<A>(p.at[k]);
    steps.template apply<T>(d, at, columns % 8 == 0);
#pragma unroll
    for (int k = 0; k < width; ++k) {
      result[k] = f.backward(d[k], keeps_x ? widen<A>(q.at[k]) + add[k] : widen<A>(q.at[k]));
      sum[k] += result[k];
    }
    store_part(dx + at, result);
  });
  sum_columns(stripe, sum, partial, tickets, db, accumulate);
}
