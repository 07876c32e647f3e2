/// Attention of bfloat16 operands on AMX (attention_tiles.hpp): the tasks of attention_forward.cpp
/// and attention_backward.cpp, with keys as rows and queries as columns of the scores. Then the
/// softmax needs nothing across the lanes of a vector, and its results are operands of the next
/// product as they are: probabilities are read by rows (dv), those of two neighbouring keys as
/// pairs (o), ds both ways (dk, dq).
#pragma once

#include <cstdint>

#include "model/kernels/attention.hpp"
#include "model/kernels/cpu/attention_tasks.hpp"

namespace longspan::model::cpu {

/// Whether this CPU has AMX with bfloat16 and the kernel lets this process use it (asked for once).
bool amx_works();

/// Floats of scratch memory, and the task in it: as forward_task and backward_task.
std::int64_t amx_forward_scratch(std::int64_t block_heads, std::int64_t head_size);
void amx_forward_task(const AttentionForwardArgs& args, const MaskIndex& mask,
                      const AttentionTask& task, const AttentionTask* next, float* memory);
std::int64_t amx_backward_scratch(std::int64_t block_heads, std::int64_t head_size);
void amx_backward_task(const AttentionBackwardArgs& args, const MaskIndex& mask,
                       const OrderedTask& ordered, const OrderedTask* next, Turn& query_turn,
                       Turn& key_turn, float* memory);

}  // namespace longspan::model::cpu
