// Column sums by themselves, as the gradient of what was added to each row.
#include "column_sums.cuh"

// sums (or what is added to them) = the column sums of x (rows, columns).
template <typename T, typename I, typename A, int W>
__device__ __forceinline__ void column_sums(const T* x, A* partials, T* sums, unsigned int* tickets, I rows, I columns, int accumulate) {
  const ColumnStripe<I, W> stripe(columns);
  A sum[W] = {};
  stripe.over_rows(rows, [&](I at) {
    const Part<T, W> part = load_part<W>(x + at);
#pragma unroll
    for (int k = 0; k < W; ++k) sum[k] += widen<A>(part.at[k]);
  });
  sum_columns(stripe, sum, partials, tickets, sums, accumulate);
}

// The same of x * dy, which is written too. One dy for `inner` elements in a row: for all, a row, or an element.
template <typename T, typename I, typename A, int W>
__device__ __forceinline__ void scaled_column_sums(const T* x, const T* dy, T* scaled, A* partials, T* sums, unsigned int* tickets, I rows,
                                                   I columns, I inner, int accumulate) {
  const ColumnStripe<I, W> stripe(columns);
  A sum[W] = {};
  const A common = widen<A>(dy[0]);
  const bool one = inner == rows * columns, own = inner == 1;
  stripe.over_rows(rows, [&](I at) {
    const Part<T, W> part = load_part<W>(x + at);
    Part<T, W> factors;
    if (own) factors = load_part<W>(dy + at);
    const A factor = one || own ? common : widen<A>(dy[at / inner]);
    A result[W];
#pragma unroll
    for (int k = 0; k < W; ++k) sum[k] += result[k] = widen<A>(part.at[k]) * (own ? widen<A>(factors.at[k]) : factor);
    store_part(scaled + at, result);
  });
  sum_columns(stripe, sum, partials, tickets, sums, accumulate);
}
