// Functions of whole rows: softmax and its kin, normalisation. Definitions and limits are those of gpuprop/ops.
#include "rowwise.cuh"

// --- Softmax --------------------------------------------------------------------------------------------------------
// Functors: y from an element below the row's maximum and the row's sum; dx from what is summed over the row.

struct Softmax {
  template <typename A> static __device__ __forceinline__ A of_row(A sum) { return A(1) / sum; }
  template <typename A> static __device__ __forceinline__ A forward(A below, A of_row) { return exp(below) * of_row; }
  template <typename A> static __device__ __forceinline__ A summed(A dy, A y) { return dy * y; }
  template <typename A> static __device__ __forceinline__ A backward(A dy, A y, A total) { return dy * y - y * total; }
};

struct LogSoftmax {
  template <typename A> static __device__ __forceinline__ A of_row(A sum) { return log(sum); }
  template <typename A> static __device__ __forceinline__ A forward(A below, A of_row) { return below - of_row; }
  template <typename A> static __device__ __forceinline__ A summed(A dy, A) { return dy; }
  template <typename A> static __device__ __forceinline__ A backward(A dy, A y, A total) { return dy - exp(y) * total; }
};

template <typename F, typename L> __device__ __forceinline__ void softmax_forward(const typename L::T* x, typename L::T* y, long long rows, int columns) {
  typedef typename L::A A;
  __shared__ A room[32];
  over_rows<L>(rows, [&](long long r) {
    Row<L, 1> row;
    row.read({x}, r, rows, columns);
    const Exponentials<A> e = exponentials(row, room);
    const A of_row = F::of_row(e.sum);
    row.parts([&](int, int c, const A(&x)[L::width][1]) {
      A result[L::width];
#pragma unroll
      for (int k = 0; k < L::width; ++k) result[k] = F::forward(below(x[k][0], e.shift), of_row);
      store_part(y + r * columns + c, result);
    });
  });
}

// dx may be dy: a thread reads nothing that another one writes.
template <typename F, typename L>
__device__ __forceinline__ void softmax_backward(const typename L::T* dy, const typename L::T* y, typename L::T* dx, long long rows, int columns) {
  typedef typename L::A A;
  __shared__ A room[32];
  over_rows<L>(rows, [&](long long r) {
    Row<L, 2> row;
    row.read({dy, y}, r, rows, columns);
    A total = A(0);
    row.each([&](int, const A* v) { total += F::summed(v[0], v[1]); });
    total = group_sum<L>(total, room);
    row.parts([&](int, int c, const A(&v)[L::width][2]) {
      A result[L::width];
#pragma unroll
      for (int k = 0; k < L::width; ++k) result[k] = F::backward(v[k][0], v[k][1], total);
      store_part(dx + r * columns + c, result);
    });
  });
}

template <typename L> __device__ __forceinline__ void logsumexp_forward(const typename L::T* x, typename L::T* y, long long rows, int columns) {
  typedef typename L::T T;
  typedef typename L::A A;
  __shared__ A room[32];
  over_rows<L>(rows, [&](long long r) {
    Row<L, 1> row;
    row.read({x}, r, rows, columns);
    const Exponentials<A> e = exponentials(row, room);
    // An infinite maximum is the result. (NaN is in the sum as well.)
    if (L::lane() == 0 && r < rows) y[r] = narrow<T>(e.largest == e.shift || e.largest != e.largest ? e.shift + log(e.sum) : e.largest);
  });
}

// dx = dy * exp(x - y) / sum(exp(x - y)): y is rounded, which matters where it is large. Where y is -inf, dx is 0.
template <typename L>
__device__ __forceinline__ void logsumexp_backward(const typename L::T* dy, const typename L::T* x, const typename L::T* y, typename L::T* dx,
                                                   long long rows, int columns) {
  typedef typename L::A A;
  __shared__ A room[32];
  over_rows<L>(rows, [&](long long r) {
    Row<L, 1> row;
    row.read({x}, r, rows, columns);
    const A kept = r < rows ? widen<A>(y[r]) : A(0), shift = kept < -Limit<typename L::T>::value() ? A(0) : kept;
    A sum = A(0);
    row.each([&](int, const A* v) { sum += exp(v[0] - shift); });
    sum = group_sum<L>(sum, room);
    const A scale = r < rows && sum != A(0) ? widen<A>(dy[r]) / sum : A(0);
    row.parts([&](int, int c, const A(&v)[L::width][1]) {
      A result[L::width];
#pragma unroll
      for (int k = 0; k < L::width; ++k) result[k] = exp(v[k][0] - shift) * scale;
      store_part(dx + r * columns + c, result);
    });
  });
}

// --- Normalisation --------------------------------------------------------------------------------------------------
// CENTRED: layer norm; else by the root mean square. Weight and bias may be null. Blocks are few and stay for many rows, so that what
// belongs to columns is read, and summed, once per block.

extern __shared__ __align__(16) unsigned char per_column[];

// Copies a parameter into shared memory, `place` arrays from its start. stays: whether it fits there.
template <typename T> __device__ __forceinline__ const T* brought_near(const T* parameter, int place, int columns, int stays) {
  if (!stays || !parameter) return parameter;
  T* near = reinterpret_cast<T*>(&per_column[0]) + (long long)place * columns;
  for (int c = threadIdx.x; c < columns; c += blockDim.x) near[c] = parameter[c];
  return near;
}

template <bool CENTRED, typename L>
__device__ __forceinline__ void norm_forward(const typename L::T* x, const typename L::T* weight, const typename L::T* bias, typename L::T* y,
                                             typename L::A* means, typename L::A* scales, long long rows, int columns, typename L::A eps, int stays) {
  typedef typename L::A A;
  __shared__ A room[32];
  weight = brought_near(weight, 0, columns, stays);
  bias = brought_near(bias, 1, columns, stays);
  __syncthreads();
  over_rows<L>(rows, [&](long long r) {
    Row<L, 1> row;
    row.read({x}, r, rows, columns);
    A mean = A(0), square = A(0);
    if (CENTRED) {
      row.each([&](int, const A* v) { mean += v[0]; });
      mean = group_sum<L>(mean, room) / A(columns);
    }
    row.each([&](int, const A* v) { square += (v[0] - mean) * (v[0] - mean); });
    const A scale = A(1) / sqrt(group_sum<L>(square, room) / A(columns) + eps);
    row.parts([&](int, int c, const A(&v)[L::width][1]) {
      A result[L::width];
#pragma unroll
      for (int k = 0; k < L::width; ++k) result[k] = (v[k][0] - mean) * scale;
      if (weight) {
        const auto w = load_part<L::width>(weight + c);
#pragma unroll
        for (int k = 0; k < L::width; ++k) result[k] *= widen<A>(w.at[k]);
      }
      if (bias) {
        const auto b = load_part<L::width>(bias + c);
#pragma unroll
        for (int k = 0; k < L::width; ++k) result[k] += widen<A>(b.at[k]);
      }
      store_part(y + r * columns + c, result);
    });
    if (L::lane() == 0 && r < rows) {
      if (CENTRED && means) means[r] = mean;
      if (scales) scales[r] = scale;
    }
  });
}

// dx = scale * (d - mean(d) - s * mean(d * s)), d = dy * weight, s = (x - mean) * scale; dweight = the column sums of dy * s, dbias of dy.
//
// dx, dweight, dbias may be null: nobody wants them. Each block sums its rows' share of dweight and dbias into `partials` (blocks, 2,
// columns); the last block to come to a stripe of columns adds them up, in order. Blocks begin with different stripes, so that
// different blocks are last.
template <bool CENTRED, typename L>
__device__ __forceinline__ void norm_backward(const typename L::T* dy, const typename L::T* x, const typename L::T* weight, const typename L::A* means,
                                              const typename L::A* scales, typename L::T* dx, typename L::T* dweight, typename L::T* dbias,
                                              typename L::A* partials, unsigned int* tickets, long long rows, int columns, int add_to_dweight,
                                              int add_to_dbias, int stays) {
  typedef typename L::T T;
  typedef typename L::A A;
  __shared__ A room[32];
  weight = brought_near(weight, 0, columns, stays);
  __syncthreads();
  A sums[L::held ? L::packs : 1][L::width][2];
  A* own = partials + (long long)blockIdx.x * 2 * columns;
#pragma unroll
  for (int p = 0; p < (L::held ? L::packs : 1); ++p)
#pragma unroll
    for (int k = 0; k < L::width; ++k) sums[p][k][0] = sums[p][k][1] = A(0);

  over_rows<L>(rows, [&](long long r) {
    Row<L, 2> row;
    row.read({dy, x}, r, rows, columns);
    const A mean = CENTRED && r < rows ? means[r] : A(0), scale = r < rows ? scales[r] : A(0);
    A total = A(0), along = A(0);
    const bool first = r < (long long)gridDim.x * L::side_by_side;
    row.parts([&](int p, int c, const A(&v)[L::width][2]) {
      Part<T, L::width> w;
      if (weight) w = load_part<L::width>(weight + c);
#pragma unroll
      for (int k = 0; k < L::width; ++k) {
        const A standard = (v[k][1] - mean) * scale, d = weight ? v[k][0] * widen<A>(w.at[k]) : v[k][0];
        total += d;
        along += d * standard;
        if (L::held) {
          sums[p][k][0] += v[k][0] * standard;
          sums[p][k][1] += v[k][0];
        } else if (partials) {  // a column is the same thread's in every row
          own[c + k] = first ? v[k][0] * standard : own[c + k] + v[k][0] * standard;
          own[columns + c + k] = first ? v[k][0] : own[columns + c + k] + v[k][0];
        }
      }
    });
    if (dx) {
      total = CENTRED ? group_sum<L>(total, room) / A(columns) : A(0);
      along = group_sum<L>(along, room) / A(columns);
      row.parts([&](int, int c, const A(&v)[L::width][2]) {
        Part<T, L::width> w;
        if (weight) w = load_part<L::width>(weight + c);
        A result[L::width];
#pragma unroll
        for (int k = 0; k < L::width; ++k) {
          const A standard = (v[k][1] - mean) * scale, d = weight ? v[k][0] * widen<A>(w.at[k]) : v[k][0];
          result[k] = scale * (d - total - standard * along);
        }
        store_part(dx + r * columns + c, result);
      });
    }
  });
  if (!partials) return;

  if constexpr (L::held) {
    __shared__ A of_groups[L::threads];
#pragma unroll
    for (int p = 0; p < L::packs; ++p)
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        A of_block[L::width];
#pragma unroll
        for (int k = 0; k < L::width; ++k) {
          of_block[k] = sums[p][k][which];
          if constexpr (L::side_by_side > 1) {
            __syncthreads();
            of_groups[threadIdx.x] = of_block[k];
            __syncthreads();
            if (threadIdx.x < L::group)
              for (int g = 1; g < L::side_by_side; ++g) of_block[k] += of_groups[g * L::group + threadIdx.x];
          }
        }
        const int c = L::column(p);
        if (threadIdx.x < L::group && c < columns) store_part(own + which * columns + c, of_block);
      }
  }
  const int stripes = (columns + L::threads - 1) / L::threads;
  for (int i = 0; i < stripes; ++i) {
    const int stripe = (i + blockIdx.x) % stripes, c = stripe * L::threads + threadIdx.x;
    if (!last_block(tickets + stripe, gridDim.x) || c >= columns) continue;
    A of_weight = A(0), of_bias = A(0);
    for (int block = 0; block < gridDim.x; ++block) {
      of_weight += partials[(block * 2LL) * columns + c];
      of_bias += partials[(block * 2LL + 1) * columns + c];
    }
    if (dweight) dweight[c] = narrow<T>(add_to_dweight ? widen<A>(dweight[c]) + of_weight : of_weight);
    if (dbias) dbias[c] = narrow<T>(add_to_dbias ? widen<A>(dbias[c]) + of_bias : of_bias);
  }
}
