// What every kernel uses: arithmetic types, 16-byte packs, sums within a warp and a block, and the ticket of the last block.
#pragma once

// float16 and bfloat16 are formats to store: arithmetic is float's. float64 stays float64.
template <typename T> struct Arithmetic { typedef float type; };
template <> struct Arithmetic<double> { typedef double type; };

template <typename A, typename T> __device__ __forceinline__ A widen(T x) { return A(x); }
template <typename T, typename A> __device__ __forceinline__ T narrow(A x) { return T(x); }
#ifdef GPUPROP_HALF
template <> __device__ __forceinline__ float widen<float, __half>(__half x) { return __half2float(x); }
template <> __device__ __forceinline__ __half narrow<__half, float>(float x) { return __float2half(x); }
#endif
#ifdef GPUPROP_BFLOAT16
template <> __device__ __forceinline__ float widen<float, __nv_bfloat16>(__nv_bfloat16 x) { return __bfloat162float(x); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16, float>(float x) { return __float2bfloat16(x); }
#endif

// As it would come back from memory.
template <typename T, typename A> __device__ __forceinline__ A as_stored(A x) { return widen<A>(narrow<T>(x)); }

// As many elements as one memory access of 16 bytes moves.
template <typename T> struct alignas(16) Pack {
  static const int size = 16 / sizeof(T);
  T at[size];
};

// By a type of 16 bytes that has nothing to do with T: compilers may take the copy of a Pack apart, into as many accesses as elements.
template <typename T> __device__ __forceinline__ Pack<T> load_pack(const T* p) {
  const uint4 bits = *reinterpret_cast<const uint4*>(p);
  Pack<T> result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}
template <typename T> __device__ __forceinline__ void store_pack(T* p, const Pack<T>& v) { *reinterpret_cast<Pack<T>*>(p) = v; }

// What one access moves: a pack, or a single element where packs do not fit.
template <typename T, int W> struct alignas(sizeof(T) * W) Part {
  T at[W];
};
template <int W, typename T> __device__ __forceinline__ Part<T, W> load_part(const T* p) {
  static_assert(W == 1 || W == Pack<T>::size, "a part is an element or a pack");
  Part<T, W> result;
  if constexpr (W == 1) {
    result.at[0] = *p;
  } else {
    const Pack<T> pack = load_pack(p);
#pragma unroll
    for (int k = 0; k < W; ++k) result.at[k] = pack.at[k];
  }
  return result;
}
template <int W, typename T, typename A> __device__ __forceinline__ void store_part(T* p, const A (&values)[W]) {
  Part<T, W> part;
#pragma unroll
  for (int k = 0; k < W; ++k) part.at[k] = narrow<T>(values[k]);
  *reinterpret_cast<Part<T, W>*>(p) = part;
}
template <typename T, int W> __device__ __forceinline__ void store_part(T* p, const Part<T, W>& part) { *reinterpret_cast<Part<T, W>*>(p) = part; }

// --- Sums: always in the same order, so that two runs agree to the bit ---------------------------------------------

struct Add {
  template <typename A> __device__ __forceinline__ A operator()(A a, A b) const { return a + b; }
};
struct Max {  // NaN wins, as in NumPy
  template <typename A> __device__ __forceinline__ A operator()(A a, A b) const { return a != a ? a : (b > a || b != b) ? b : a; }
};

template <typename A, typename Op> __device__ __forceinline__ A warp_reduce(A value, Op op) {
  for (int step = 16; step > 0; step /= 2) value = op(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;  // the same in every lane
}

// All threads of the block call it, with a multiple of 32 threads; all get the result. `room` holds 32 values.
template <typename A, typename Op> __device__ A block_reduce(A value, Op op, A neutral, A* room) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = warp_reduce(value, op);
  __syncthreads();  // `room` may still be read from the call before
  if (lane == 0) room[warp] = value;
  __syncthreads();
  return warp_reduce(lane < warps ? room[lane] : neutral, op);
}

// True in the block that is the last of `blocks` to come here, which then sees what the others wrote before. Resets the ticket.
__device__ inline bool last_block(unsigned int* ticket, unsigned int blocks) {
  __shared__ bool last;
  __threadfence();  // what this thread wrote is visible to whoever sees the ticket that is drawn next
  __syncthreads();  // all threads of the block have written and fenced
  if (threadIdx.x == 0) {
    last = atomicAdd(ticket, 1u) == blocks - 1;
    if (last) atomicExch(ticket, 0u);
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// The sum of the value of every thread of the grid, in the last block, where this is true. partials: a number for each block.
template <typename A> __device__ __forceinline__ bool grid_sum(A& value, A* partials, unsigned int* ticket, A* room) {
  const unsigned int block = blockIdx.y * gridDim.x + blockIdx.x, blocks = gridDim.x * gridDim.y;
  value = block_reduce(value, Add(), A(0), room);
  if (threadIdx.x == 0) partials[block] = value;
  if (!last_block(ticket, blocks)) return false;
  value = A(0);
  for (unsigned int i = threadIdx.x; i < blocks; i += blockDim.x) value += partials[i];
  value = block_reduce(value, Add(), A(0), room);
  return true;
}
