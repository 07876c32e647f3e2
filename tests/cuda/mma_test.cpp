// The functions of mma.cuh against plain products, with every fragment filled and read by the
// layouts of the PTX ISA, and the late arrival of asynchronous copies.
#include "model/kernels/cuda/mma.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace longspan {
namespace {

using namespace model::cuda;

struct Matrices {
  // Row major bf16 bits. b: [16 k][8 columns].
  std::uint16_t a[16][16], b[16][8];
  float c[16][8];
  std::uint16_t matrices[4][8][8];
  std::uint32_t plain[32][4], transposed[32][4];
};

float value(std::uint16_t bits) {
  const std::uint32_t word = std::uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

/// Device memory that holds one T.
template <class T>
class OnDevice {
 public:
  explicit OnDevice(const T& value) {
    LONGSPAN_CUDA(cudaMalloc(reinterpret_cast<void**>(&memory_), sizeof(T)));
    LONGSPAN_CUDA(cudaMemcpy(memory_, &value, sizeof(T), cudaMemcpyHostToDevice));
  }
  ~OnDevice() { cudaFree(memory_); }
  T* get() { return memory_; }
  T fetch() {
    T value;
    LONGSPAN_CUDA(cudaMemcpy(&value, memory_, sizeof(T), cudaMemcpyDeviceToHost));
    return value;
  }

 private:
  T* memory_ = nullptr;
};

/// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": the text's own formulas.
__global__ void multiply(Matrices* m) {
  const int lane = threadIdx.x, group = lane >> 2, in_group = lane % 4;
  std::uint32_t a[4], b[2];
  for (int i = 0; i < 8; ++i) {
    const int row = (i >= 0 && i < 2) || (i >= 4 && i < 6) ? group : group + 8;
    const int column = i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
    const std::uint32_t bits = m->a[row][column];
    a[i / 2] = i % 2 ? a[i / 2] | bits << 16 : bits;
  }
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
    const std::uint32_t bits = m->b[row][group];
    b[i / 2] = i % 2 ? b[i / 2] | bits << 16 : bits;
  }
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = m->c[i < 2 ? group : group + 8][in_group * 2 + (i & 1)];
  mma_bf16(d, a, b[0], b[1]);
  for (int i = 0; i < 4; ++i) m->c[i < 2 ? group : group + 8][in_group * 2 + (i & 1)] = d[i];
}

TEST(MatrixUnits, MultiplyAsThePtxLayoutsSay) {
  Matrices m{};
  float expected[16][8];
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      m.a[i][k] = bf16_bits(static_cast<float>((i * 7 + k * 3) % 11 - 5));
  for (int k = 0; k < 16; ++k)
    for (int j = 0; j < 8; ++j) m.b[k][j] = bf16_bits(static_cast<float>((k * 5 + j * 2) % 13 - 6));
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      m.c[i][j] = expected[i][j] = static_cast<float>(i - j) / 4.0f;
      for (int k = 0; k < 16; ++k) expected[i][j] += value(m.a[i][k]) * value(m.b[k][j]);
    }
  OnDevice<Matrices> device(m);
  cuda::CudaStream stream;
  cuda::launch(multiply, dim3(1), dim3(32), 0, stream, device.get());
  m = device.fetch();
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) EXPECT_EQ(m.c[i][j], expected[i][j]) << i << ", " << j;
}

__global__ void load(Matrices* m) {
  auto* const shared = cuda::dynamic_shared<std::uint16_t>();
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) shared[i] = (&m->matrices[0][0][0])[i];
  __syncthreads();
  load_matrices(m->plain[lane], shared + lane * 8);
  load_matrices_transposed(m->transposed[lane], shared + lane * 8);
}

TEST(MatrixUnits, LoadFourMatricesAsLdmatrixDoes) {
  Matrices m{};
  for (int i = 0; i < 4; ++i)
    for (int r = 0; r < 8; ++r)
      for (int c = 0; c < 8; ++c)
        m.matrices[i][r][c] = static_cast<std::uint16_t>(i * 1000 + r * 10 + c);
  OnDevice<Matrices> device(m);
  cuda::CudaStream stream;
  cuda::launch(load, dim3(1), dim3(32), 4 * 64 * 2, stream, device.get());
  m = device.fetch();
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4, column = lane % 4 * 2;
      EXPECT_EQ(m.plain[lane][i] & 0xffff, m.matrices[i][row][column]);
      EXPECT_EQ(m.plain[lane][i] >> 16, m.matrices[i][row][column + 1]);
      EXPECT_EQ(m.transposed[lane][i] & 0xffff, m.matrices[i][column][row]);
      EXPECT_EQ(m.transposed[lane][i] >> 16, m.matrices[i][column + 1][row]);
    }
}

TEST(MatrixUnits, RoundToNearestEvenAndKeepNaN) {
  EXPECT_EQ(pack_bf16(1.0f, -2.0f), 0xc0003f80u);
  EXPECT_EQ(pack_bf16(1.00390625f, 1.01171875f), 0x3f823f80u);  // ties to even
  EXPECT_EQ(pack_bf16(1.0039065f, 0.0f), 0x3f81u);
  EXPECT_TRUE(std::isnan(value(bf16_bits(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_EQ(fast_exp2(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_EQ(fast_exp2(3.0f), 8.0f);
}

struct Copies {
  std::uint32_t from[8], after_first[8], after_all[8];
};

__global__ void copy(Copies* c) {
  auto* const shared = cuda::dynamic_shared<std::uint32_t>();
  for (int i = 0; i < 8; ++i) shared[i] = 99;
  copy_16_async(shared, c->from, true);
  commit_copies();
  copy_4_async(shared + 4, c->from + 4, true);
  copy_4_async(shared + 5, c->from + 5, false);
  commit_copies();
  wait_for_copies<1>();
  for (int i = 0; i < 8; ++i) c->after_first[i] = shared[i];
  wait_for_copies<0>();
  for (int i = 0; i < 8; ++i) c->after_all[i] = shared[i];
}

TEST(AsynchronousCopies, ArriveAsLateAsTheyMay) {
  const Copies start = {{1, 2, 3, 4, 5, 6, 7, 8}, {}, {}};
  OnDevice<Copies> device(start);
  cuda::CudaStream stream;
  cuda::launch(copy, dim3(1), dim3(1), 32, stream, device.get());
  const Copies result = device.fetch();
  const std::uint32_t first[8] = {1, 2, 3, 4, 99, 99, 99, 99}, all[8] = {1, 2, 3, 4, 5, 0, 99, 99};
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(result.after_first[i], first[i]) << i;
    EXPECT_EQ(result.after_all[i], all[i]) << i;
  }
}

}  // namespace
}  // namespace longspan
