// ranks: 1 4 8
/// The groups of a mesh hold the ranks that the rule of mesh.hpp names.
#include <gtest/gtest.h>

#include "parallel/mesh.hpp"

namespace longspan {
namespace {

std::vector<std::int64_t> world_ranks(const Communicator& group, const Communicator& world) {
  return group.all_gather(std::int64_t{world.rank()});
}

TEST(Mesh, GroupsFollowTheRuleTensorFastest) {
  const Communicator world = Communicator::world();
  const MeshShape shape = world.size() == 8   ? MeshShape{2, 2, 2}
                          : world.size() == 4 ? MeshShape{2, 1, 2}
                                              : MeshShape{1, 1, 1};
  const Mesh mesh(world, shape);
  const auto rank_at = [&](int data, int context, int tensor) {
    return std::int64_t{(data * shape.context + context) * shape.tensor + tensor};
  };
  const int d = mesh.data_index(), c = mesh.context_index(), t = mesh.tensor_index();
  std::vector<std::int64_t> data, context, tensor, replicas;
  for (int i = 0; i < shape.data; ++i) data.push_back(rank_at(i, c, t));
  for (int i = 0; i < shape.context; ++i) context.push_back(rank_at(d, i, t));
  for (int i = 0; i < shape.tensor; ++i) tensor.push_back(rank_at(d, c, i));
  for (int i = 0; i < shape.data; ++i)
    for (int j = 0; j < shape.context; ++j) replicas.push_back(rank_at(i, j, t));
  EXPECT_EQ(rank_at(d, c, t), world.rank());
  EXPECT_EQ(world_ranks(mesh.data(), world), data);
  EXPECT_EQ(world_ranks(mesh.context(), world), context);
  EXPECT_EQ(world_ranks(mesh.tensor(), world), tensor);
  EXPECT_EQ(world_ranks(mesh.replicas(), world), replicas);
}

}  // namespace
}  // namespace longspan
