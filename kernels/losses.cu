// Losses: each is one launch that computes the loss and, where anyone will differentiate, its gradient for dy = 1 in the same pass.
// Definitions are those of gpuprop/ops/losses.py.
#include "column_sums.cuh"
#include "rowwise.cuh"

enum Reduction { NONE, SUM, MEAN };

// The end of a reduced loss: the last block adds up what the threads of all blocks summed, in order, and divides. True in that block.
template <typename T, typename A>
__device__ __forceinline__ bool reduce_loss(A sum, A divisor, T* loss, A* partials, unsigned int* ticket, A* room) {
  const unsigned int block = blockIdx.y * gridDim.x + blockIdx.x, blocks = gridDim.x * gridDim.y;
  sum = block_reduce(sum, Add(), A(0), room);
  if (threadIdx.x == 0) partials[block] = sum;
  if (!last_block(ticket, blocks)) return false;
  A total = A(0);
  for (unsigned int i = threadIdx.x; i < blocks; i += blockDim.x) total += partials[i];
  total = block_reduce(total, Add(), A(0), room);
  if (threadIdx.x == 0) *loss = narrow<T>(total / divisor);
  return true;
}

// --- Losses of elements ---------------------------------------------------------------------------------------------
// A functor has
//   static const int inputs, slopes
//   A operator()(const A (&x)[inputs], A (&slope)[slopes])     the loss, and its derivatives by the first inputs
// and its options as members.

#define LOSS(INPUTS, SLOPES)                       \
  static const int inputs = INPUTS, slopes = SLOPES; \
  template <typename A> __device__ __forceinline__ A operator()(const A (&x)[INPUTS], A (&slope)[SLOPES]) const

// An input whose elements are repeated: element i of the loss has element i % period of it. Null: all 1.
template <typename T, typename I> struct Operand {
  const T* from;
  I period;
  template <int W> __device__ __forceinline__ Part<T, W> fetch(I at, I n) const {
    Part<T, W> values;
    if (!from) {
#pragma unroll
      for (int k = 0; k < W; ++k) values.at[k] = narrow<T>(1.0f);
    } else if (period == n || period % W == 0) {  // whole packs
      values = load_part<W>(from + (period == n ? at : at % period));
    } else {
#pragma unroll
      for (int k = 0; k < W; ++k) values.at[k] = from[(at + k) % period];
    }
    return values;
  }
};

// Elements stay as narrow as they are until they are used: registers are few.
template <int W, typename F, typename T, typename I, typename A>
__device__ __forceinline__ A some_losses(const Operand<T, I> (&x)[F::inputs], T* losses, T* const (&gradients)[F::slopes], I at, I n, A share,
                                         const F& f) {
  Part<T, W> values[F::inputs], loss, slopes[F::slopes];
  A sum = A(0);
#pragma unroll
  for (int i = 0; i < F::inputs; ++i) values[i] = x[i].template fetch<W>(at, n);
#pragma unroll
  for (int k = 0; k < W; ++k) {
    A of_one[F::inputs], slope[F::slopes];
#pragma unroll
    for (int i = 0; i < F::inputs; ++i) of_one[i] = widen<A>(values[i].at[k]);
    const A one = f(of_one, slope);
    sum += one;
    loss.at[k] = narrow<T>(one);
#pragma unroll
    for (int i = 0; i < F::slopes; ++i) slopes[i].at[k] = narrow<T>(slope[i] * share);
  }
  if (losses) store_part(losses + at, loss);
#pragma unroll
  for (int i = 0; i < F::slopes; ++i)
    if (gradients[i]) store_part(gradients[i] + at, slopes[i]);
  return sum;
}

// gradients: null where nobody will differentiate. divisor: what a mean divides by, else 1.
template <typename F, typename T, typename I, typename A>
__device__ __forceinline__ void element_loss(const Operand<T, I> (&x)[F::inputs], T* loss, T* const (&gradients)[F::slopes], A* partials,
                                             unsigned int* ticket, I n, A divisor, int reduction, F f) {
  const int width = Pack<T>::size;
  const I stride = I(gridDim.x) * blockDim.x, first = I(blockIdx.x) * blockDim.x + threadIdx.x, packs = n / width;
  T* losses = reduction == NONE ? loss : nullptr;
  const A share = A(1) / divisor;
  A sum = A(0);
  for (I i = first; i < packs; i += stride) sum += some_losses<width>(x, losses, gradients, i * width, n, share, f);
  for (I i = packs * width + first; i < n; i += stride) sum += some_losses<1>(x, losses, gradients, i, n, share, f);
  __shared__ A room[32];
  if (reduction != NONE) reduce_loss(sum, divisor, loss, partials, ticket, room);
}

// The same of x + bias and a target, x (rows, columns); inputs after these are 1. dbias = the column sums of dx, which are made in shared
// memory, because registers are full of elements.
template <typename F, typename T, typename I, typename A, int W>
__device__ __forceinline__ void biased_element_loss(const T* x, const T* target, const T* bias, T* loss, T* dx, T* dbias, A* partials,
                                                    unsigned int* ticket, A* column_partials, unsigned int* tickets, I rows, I columns, A divisor,
                                                    int reduction, F f) {
  const ColumnStripe<I, W> stripe(columns);
  const A share = A(1) / divisor;
  __shared__ A sums[W][256], room[32];
#pragma unroll
  for (int k = 0; k < W; ++k) sums[k][threadIdx.x] = A(0);
  A sum = A(0);
  stripe.template over_rows<1>(rows, [&](I at) {
    const Part<T, W> some = load_part<W>(x + at), wanted = load_part<W>(target + at), add = load_part<W>(bias + stripe.column());
    Part<T, W> losses, slopes;
#pragma unroll
    for (int k = 0; k < W; ++k) {
      A inputs[F::inputs], slope[F::slopes];
      inputs[0] = widen<A>(some.at[k]) + widen<A>(add.at[k]);
      inputs[1] = widen<A>(wanted.at[k]);
#pragma unroll
      for (int i = 2; i < F::inputs; ++i) inputs[i] = A(1);
      const A one = f(inputs, slope);
      sum += one;
      sums[k][threadIdx.x] += slope[0] * share;
      losses.at[k] = narrow<T>(one);
      slopes.at[k] = narrow<T>(slope[0] * share);
    }
    if (reduction == NONE) store_part(loss + at, losses);
    if (dx) store_part(dx + at, slopes);
  });
  if (dbias) sum_columns(stripe, sums, column_partials, tickets, dbias, 0);
  if (reduction != NONE) reduce_loss(sum, divisor, loss, partials, ticket, room);
}

struct Mse {
  LOSS(2, 1) {
    const A d = x[0] - x[1];
    slope[0] = A(2) * d;
    return d * d;
  }
};

template <typename A> __device__ __forceinline__ A sign(A x) { return x > A(0) ? A(1) : x < A(0) ? A(-1) : x; }
template <typename A> __device__ __forceinline__ A no_more(A x, A limit) { return x > limit ? limit : x; }  // NaN stays NaN
template <typename A> __device__ __forceinline__ A no_less(A x, A limit) { return x < limit ? limit : x; }

struct L1 {
  LOSS(2, 1) {
    slope[0] = sign(x[0] - x[1]);
    return fabs(x[0] - x[1]);
  }
};

template <typename Scalar> struct SmoothL1 {
  Scalar beta;
  LOSS(2, 1) {
    const A d = x[0] - x[1], distance = fabs(d), near = no_more(distance, beta);
    slope[0] = beta > A(0) ? no_less(no_more(d / beta, A(1)), A(-1)) : sign(d);
    return beta > A(0) ? near * near * (A(0.5) / beta) + (distance - near) : distance;
  }
};

template <typename Scalar> struct Huber {
  Scalar delta;
  LOSS(2, 1) {
    const A d = x[0] - x[1], distance = fabs(d), near = no_more(distance, delta);
    slope[0] = no_less(no_more(d, delta), -delta);
    return near * near * A(0.5) + delta * (distance - near);
  }
};

// Input, target, weight, pos_weight. Nothing of something infinite is nothing: 0 * inf = 0.
template <typename A> __device__ __forceinline__ A times(A share, A value) { return share == A(0) ? A(0) : share * value; }

struct BinaryCrossEntropy {
  LOSS(4, 1) {
    const A e = exp(-fabs(x[0])), tail = log1p(e), s = A(1) / (A(1) + e), other = e * s;
    const A p = x[0] < A(0) ? other : s, q = x[0] < A(0) ? s : other;  // sigmoid(x), sigmoid(-x)
    const A log_p = no_more(x[0], A(0)) - tail, log_q = no_more(-x[0], A(0)) - tail;
    const A yes = x[1] * x[3], no = A(1) - x[1];
    slope[0] = (no * p - yes * q) * x[2];
    return -(times(yes, log_p) + times(no, log_q)) * x[2];
  }
};

template <typename Scalar> struct PoissonNll {
  bool log_input, full;
  Scalar eps;
  LOSS(2, 1) {
    const A rate = log_input ? exp(x[0]) : x[0];
    A loss = rate - x[1] * (log_input ? x[0] : log(x[0] + eps));
    slope[0] = log_input ? rate - x[1] : A(1) - x[1] / (x[0] + eps);
    if (full) {
      const A many = no_less(x[1], A(1));
      loss += A(x[1] > A(1)) * (many * log(many) - many + A(0.5) * log(many * A(6.283185307179586)));
    }
    return loss;
  }
};

template <typename Scalar> struct GaussianNll {  // input, variance, target
  bool full;
  Scalar eps;
  int* negative;  // set where a variance is below 0
  LOSS(3, 2) {
    if (x[1] < A(0)) atomicOr(negative, 1);
    const A precision = A(1) / no_less(x[1], eps), d = x[0] - x[2], scaled = d * precision;
    slope[0] = scaled;
    slope[1] = A(0.5) * (precision - scaled * scaled);
    return A(0.5) * (d * d * precision - log(precision)) + (full ? A(0.91893853320467274) : A(0));
  }
};

// --- Cross-entropy of rows of logits --------------------------------------------------------------------------------
// A row's loss is -sum_c share_c log p_c, its slope p_c sum(shares) - share_c. Targets say the shares:
//   void read(row, rows, turn)            called before the exponentials of a row are summed, by turns 0 and 1
//   Of of(row, rows, columns, turn)       A Of::share(column, values)
//   static const bool one_hot: sum(shares) is known without adding them up, and a single class has a loss
//   A divisor(...)                        what a mean divides by

// The sum of the labels' weights has to be known before any gradient is written, and no block may wait for another. So the rows are cut
// into chunks; each warp publishes the sum of its own, and a block adds up all of them, in order, once it has begun to load its logits.
// What nobody has published by then it computes itself, with the same bits. A word of 0: not published.
__device__ __forceinline__ unsigned long long to_word(float sum) { return ~(unsigned long long)__float_as_uint(sum); }
__device__ __forceinline__ unsigned long long to_word(double sum) {  // the one number that would give 0 is a NaN of odd bits
  return ~(unsigned long long)__double_as_longlong(sum == sum ? sum : __longlong_as_double(0x7ff8000000000000LL));
}
__device__ __forceinline__ void from_word(unsigned long long word, float& sum) { sum = __uint_as_float((unsigned int)~word); }
__device__ __forceinline__ void from_word(unsigned long long word, double& sum) { sum = __longlong_as_double((long long)~word); }

template <typename L, typename Label, bool SMOOTHED> struct Labels {
  typedef typename L::T T;
  typedef typename L::A A;
  static const int inputs = 1;
  static const bool one_hot = !SMOOTHED;
  const Label* labels;
  const T* weight;  // null: all 1
  long long ignore_index;
  A kept, spread;  // of a label's weight: what smoothing leaves there, and what each class gets of its own
  unsigned long long* words;  // of `chunks` sums of weights; all 0 before and after a launch
  int chunks;
  int *outside, *nothing;  // set where a label is no class; where a mean has nothing to divide by

  __device__ __forceinline__ A weight_of(long long label) const { return weight ? widen<A>(weight[label]) : A(1); }

  struct Of {
    const T* weight;
    int label;  // -1: none
    A on_label, everywhere;
    __device__ __forceinline__ A share(int column, const A*) const {
      if (!SMOOTHED) return column == label ? on_label : everywhere;
      return (column == label ? on_label : A(0)) + (weight ? widen<A>(weight[column]) : A(1)) * everywhere;
    }
  };
  // Where several warps share a row, one thread reads its label, into one of two places by turns: between a read and the next write to the
  // same place all pass a barrier, that of the other turn's sums.
  static const bool handed = L::group > 32;
  static __device__ __forceinline__ Label& place(int turn) {
    __shared__ Label places[2][L::side_by_side];
    return places[turn][threadIdx.x / L::group];
  }
  __device__ __forceinline__ void read(long long row, long long rows, int turn) const {
    if (handed && L::lane() == 0 && row < rows) place(turn) = labels[row];
  }
  __device__ __forceinline__ Of of(long long row, long long rows, int columns, int turn) const {
    if (row >= rows) return {weight, -1, A(0), A(0)};
    const long long label = handed ? place(turn) : labels[row];
    if (label == ignore_index) return {weight, -1, A(0), A(0)};
    if (label < 0 || label >= columns) {
      if (L::lane() == 0) atomicOr(outside, 1);
      const A nan = A(0) / A(0);
      return {weight, -1, nan, nan};
    }
    return {weight, int(label), SMOOTHED ? weight_of(label) * kept : weight_of(label), SMOOTHED ? spread : A(0)};
  }

  // The sum of the weights of one chunk, by one warp.
  __device__ __forceinline__ A of_chunk(int chunk, long long rows, int columns) const {
    const long long length = (rows + chunks - 1) / chunks, begin = chunk * length, end = begin + length < rows ? begin + length : rows;
    A sum = A(0);
#pragma unroll 1  // the registers are full of logits
    for (long long row = begin + threadIdx.x % 32; row < end; row += 32) {
      const long long label = labels[row];
      if (label != ignore_index && label >= 0 && label < columns) sum += weight_of(label);
    }
    return warp_reduce(sum, Add());
  }
  __device__ __forceinline__ void publish(int chunk, A sum) const {
    if (threadIdx.x % 32 == 0) atomicExch(words + chunk, to_word(sum));
  }
  __device__ __forceinline__ void announce(long long rows, int columns) const {
    const int chunk = blockIdx.x * (L::threads / 32) + threadIdx.x / 32;
    if (chunk < chunks) publish(chunk, of_chunk(chunk, rows, columns));
  }
  __device__ __forceinline__ A divisor(long long rows, int columns, A* room) const {
    const int lane = threadIdx.x % 32;
    A sum = A(0);
    for (int first = threadIdx.x / 32 * 32; first < chunks; first += L::threads) {
      const int chunk = first + lane;
      const unsigned long long word = chunk < chunks ? *(volatile unsigned long long*)(words + chunk) : ~0ULL;  // what nobody has is 0
      A value;
      from_word(word, value);
      for (unsigned int missing = __ballot_sync(0xffffffffu, word == 0); missing; missing &= missing - 1) {
        const int one = first + __ffs(missing) - 1;
        const A found = of_chunk(one, rows, columns);
        publish(one, found);
        if (one == chunk) value = found;
      }
      sum += value;
    }
    return block_reduce(sum, Add(), A(0), room);
  }
  __device__ __forceinline__ void finish(A divisor) const {
    if (threadIdx.x == 0 && divisor == A(0)) atomicOr(nothing, 1);
    for (int i = threadIdx.x; i < chunks; i += L::threads) words[i] = 0;
  }
};

template <typename L> struct Probabilities {
  typedef typename L::T T;
  typedef typename L::A A;
  static const int inputs = 2;
  static const bool one_hot = false;
  const T* weight;  // null: all 1
  A kept, spread;   // of a probability, and for every class

  struct Of {
    const T* weight;
    int label;  // -1: none
    A on_label, everywhere;
    __device__ __forceinline__ A share(int column, const A* values) const {
      return (weight ? widen<A>(weight[column]) : A(1)) * (values[1] * on_label + everywhere);
    }
  };
  __device__ __forceinline__ void read(long long, long long, int) const {}
  __device__ __forceinline__ Of of(long long, long long, int, int) const { return {weight, -1, kept, spread}; }
  __device__ __forceinline__ void announce(long long, int) const {}
  __device__ __forceinline__ A divisor(long long rows, int, A*) const { return A(rows); }
  __device__ __forceinline__ void finish(A) const {}
};

// What is added to the logits of each row, and where its gradient, the column sums of theirs, is made. dbias: null where nobody will
// differentiate, or rows are not held. partials: (blocks, columns). A thread sums up the columns of its group in shared memory, because
// its registers are full of logits.
template <typename L> struct Bias {
  typedef typename L::T T;
  typedef typename L::A A;
  static const bool present = true;
  static const int packs = L::held ? L::packs : 1, threads = L::threads;
  const T* bias;
  T* dbias;
  A* partials;

  static __device__ __forceinline__ A* sums(int pack) {  // of a thread's columns in a pack: one for every `threads`
    __shared__ A of_threads[packs * L::width * threads];
    return of_threads + pack * L::width * threads;
  }
  __device__ __forceinline__ void start() const {
    if (L::held && dbias)
      for (int p = 0; p < packs; ++p)
        for (int k = 0; k < L::width; ++k) sums(p)[k * threads + threadIdx.x] = A(0);
  }
  __device__ __forceinline__ void add(int p, const A (&slope)[L::width]) const {
    if (L::held && dbias) {
#pragma unroll
      for (int k = 0; k < L::width; ++k) sums(p)[k * threads + threadIdx.x] += slope[k];
    }
  }
  __device__ __forceinline__ void publish(int columns) const {
    if (!L::held || !dbias) return;
    __syncthreads();
    for (int c = threadIdx.x; c < columns; c += threads) {
      const int part = c / L::width, thread = part % L::group;
      const A* of_groups = sums(part / L::group) + c % L::width * threads + thread;
      A sum = of_groups[0];
      for (int g = 1; g < L::side_by_side; ++g) sum += of_groups[g * L::group];
      partials[(long long)blockIdx.x * columns + c] = sum;
    }
  }
  // By the last block.
  __device__ __forceinline__ void finish(int columns) const {
    if (!L::held || !dbias) return;
    const int V = L::width == 1 ? 1 : Pack<A>::size, groups = columns / V, across = groups < threads ? groups : +threads, down = threads / across;
    const int x = threadIdx.x % across, y = threadIdx.x / across;
    for (int first = 0; first < groups; first += across) {
      const int column = (first + x) * V;
      A total[V];
      add_parts(total, partials, reinterpret_cast<A(*)[threads]>(sums(0)), column, columns, int(gridDim.x), across, down, y);
      if (y == 0 && column < columns) {
#pragma unroll
        for (int k = 0; k < V; ++k) dbias[column + k] = narrow<T>(total[k]);
      }
    }
  }
};
struct NoBias {
  static const bool present = false;
  __device__ __forceinline__ void start() const {}
  template <typename A, int W> __device__ __forceinline__ void add(int, const A (&)[W]) const {}
  __device__ __forceinline__ void publish(int) const {}
  __device__ __forceinline__ void finish(int) const {}
};

// dlogits: null where nobody will differentiate.
template <typename L, typename Target, typename B>
__device__ __forceinline__ void cross_entropy(const typename L::T* const (&arrays)[Target::inputs], const Target& target, const B& bias, typename L::T* loss,
                                              typename L::T* dlogits, typename L::A* partials, unsigned int* ticket, long long rows, int columns,
                                              int reduction) {
  typedef typename L::T T;
  typedef typename L::A A;
  typedef Row<L, Target::inputs, B::present> R;
  __shared__ A room[32];
  const bool mean = reduction == MEAN;
  const int group = threadIdx.x / L::group;
  long long r = (long long)blockIdx.x * L::side_by_side + group;

  bias.start();
  if (mean) target.announce(rows, columns);
  R row;
  if constexpr (B::present) row.bias = bias.bias;
  row.read(arrays, r, rows, columns);
  __shared__ A divisor;  // not in a register: it is needed again at the very end. (Nor is a comparison with thread 0 kept for it.)
  const A found = mean ? target.divisor(rows, columns, room) : A(1), each = A(1) / found;
  if (threadIdx.x == L::threads - 1) divisor = found;
  A sum = A(0);
  int turn = 0;
  while (r - group < rows) {  // as long as any group of the block has a row
    target.read(r, rows, turn);
    const Exponentials<A> e = exponentials(row, room);
    const typename Target::Of of = target.of(r, rows, columns, turn);
    turn ^= 1;
    const A log_sum = log(e.sum);
    if (!L::held && Target::one_hot && !dlogits) {  // without another pass over the row
      if (L::lane() == 0) sum += of.label < 0 ? of.on_label : -times(of.on_label, below(row.element(of.label), e.shift) - log_sum);
    } else {
      A shares = of.on_label;
      if constexpr (!Target::one_hot) {
        shares = A(0);
        row.each([&](int c, const A* x) { shares += of.share(c, x); });
        shares = group_sum<L>(shares, room);
      }
      const A scale = shares / e.sum * each;
      row.parts([&](int p, int c, const A(&x)[L::width][Target::inputs]) {
        A slope[L::width];
#pragma unroll
        for (int k = 0; k < L::width; ++k) {
          const A shifted = below(x[k][0], e.shift), share = of.share(c + k, x[k]);
          sum -= times(share, shifted - log_sum);
          slope[k] = exp(shifted) * scale - share * each;
        }
        bias.add(p, slope);
        if (dlogits) store_part(dlogits + r * columns + c, slope);
      });
    }
    if (reduction == NONE) {
      sum = group_sum<L>(sum, room);
      if (L::lane() == 0 && r < rows) loss[r] = narrow<T>(sum);
      sum = A(0);
    }
    r += (long long)gridDim.x * L::side_by_side;
    row.read(arrays, r, rows, columns);
  }
  if (reduction == NONE) return;
  bias.publish(columns);
  __syncthreads();
  if (!reduce_loss(sum, divisor, loss, partials, ticket, room)) return;
  bias.finish(columns);
  if (mean) target.finish(divisor);
}

// --- Upstream gradients other than one ------------------------------------------------------------------------------

// result = gradient * dy * factor; one dy for `inner` elements in a row. Without dy, it is 1.
template <typename T, typename I, typename A>
__device__ __forceinline__ void scaled(const T* gradient, const T* dy, T* result, I n, I inner, A factor) {
  const int width = Pack<T>::size;
  const I stride = I(gridDim.x) * blockDim.x, first = I(blockIdx.x) * blockDim.x + threadIdx.x, packs = n / width;
  const A common = dy && inner == n ? widen<A>(dy[0]) * factor : factor;
  const bool own = dy && inner != n;
  const auto of = [&](I i, T value) { return narrow<T>(widen<A>(value) * (own ? widen<A>(dy[i / inner]) * factor : common)); };
  for (I i = first; i < packs; i += stride) {
    Pack<T> p = load_pack(gradient + i * width);
#pragma unroll
    for (int k = 0; k < width; ++k) p.at[k] = of(i * width + k, p.at[k]);
    store_pack(result + i * width, p);
  }
  for (I i = packs * width + first; i < n; i += stride) result[i] = of(i, gradient[i]);
}

#undef LOSS
