// The loops of a bias and an activation in one pass: x is (rows, columns), bias (columns) or null.
#pragma once
#include "dropout.cuh"
#include "functors.cuh"

// y = f(x + bias), then dropout; y may be x. `width` columns at a time: a pack, or one where packs do not divide the columns.
template <typename S, typename T, typename I, int width, typename D = Whole>
__device__ __forceinline__ void bias_forward(const T* x, const T* bias, T* y, I rows, I columns, S functors, D dropout = D()) {
  typedef typename Arithmetic<T>::type A;
  const I groups = columns / width, stride = I(gridDim.x) * blockDim.x;
  typename D::template Steps<width> steps(dropout, Word(stride) * width);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * groups; i += stride) {
    const I column = i % groups * width, at = i * width;
    const auto f = functors.template of<width>(column);
    const Part<T, width> p = load_part<width>(x + at);
    Part<T, width> b;
    if (bias) b = load_part<width>(bias + column);
    A value[width];
#pragma unroll
    for (int k = 0; k < width; ++k) value[k] = f.at(k).forward(bias ? widen<A>(p.at[k]) + widen<A>(b.at[k]) : widen<A>(p.at[k]));
    steps.template apply<T>(value, at, at / 8 < rows * columns / 8);
    store_part(y + at, value);
  }
}

// dx = dy f'(kept), dy having gone back through dropout first; db = the column sums of dx: one pass, one launch. dx may be dy, db null,
// and where functors learn also dx: nobody wants it.
//
// kept is y, or (keeps_x) x without the bias, which is added again.
template <typename S, typename T, typename I, int width, bool keeps_x, typename D = Whole>
__device__ __forceinline__ void bias_backward(const T* dy, const T* kept, const T* bias, T* dx, typename Arithmetic<T>::type* partial, T* db,
                                              unsigned int* tickets, I rows, I columns, int accumulate, S functors, D dropout = D()) {
  typedef typename Arithmetic<T>::type A;
  const ColumnStripe<I, width> stripe(columns);
  const auto functors_here = [&] { return functors.template of<width>(stripe.column()); };
  const auto bias_here = [&] {
    Part<T, width> b;
#pragma unroll
    for (int k = 0; k < width; ++k) b.at[k] = narrow<T>(A(0));
    if (keeps_x && bias) b = load_part<width>(bias + stripe.column());
    return b;
  };
  const bool few = S::learns && width > 4;  // registers, with two sums for each of so many columns: the rest is read again for each row
  auto f = decltype(functors_here()){};
  Part<T, width> b;
  if (!few) f = functors_here(), b = bias_here();
  A sum[width] = {}, learnt[width] = {};
  typename D::template Steps<width> steps(dropout, Word(gridDim.y) * stripe.down * columns);
  stripe.template over_rows<few ? 1 : D::unroll>(rows, [&](I at) {
    const Part<T, width> p = load_part<width>(dy + at), q = load_part<width>(kept + at);
    if (few) f = functors_here(), b = bias_here();
    A d[width], result[width];
#pragma unroll
    for (int k = 0; k < width; ++k) d[k] = widen<A>(p.at[k]);
    steps.template apply<T>(d, at, columns % 8 == 0);
#pragma unroll
    for (int k = 0; k < width; ++k) {
      const A point = keeps_x ? widen<A>(q.at[k]) + widen<A>(b.at[k]) : widen<A>(q.at[k]);
      result[k] = f.at(k).backward(d[k], point);
      sum[k] += result[k];
      if constexpr (S::learns) learnt[k] += f.at(k).to_learnt(d[k], point);
    }
    if (!S::learns || dx) store_part(dx + at, result);
  });
  if (db) sum_columns(stripe, sum, partial, tickets, db, accumulate);
  if constexpr (S::learns) functors.finish(learnt, stripe);
}
