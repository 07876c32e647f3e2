#include "model/config.hpp"

namespace longspan::model {

const char* name_of(Precision precision) {
  return precision == Precision::kFp32 ? "fp32" : "bf16";
}

const char* name_of(AttentionSchemeKind scheme) {
  switch (scheme) {
    case AttentionSchemeKind::kAuto:
      return "auto";
    case AttentionSchemeKind::kRing:
      return "ring";
    case AttentionSchemeKind::kAllgather:
      return "allgather";
    case AttentionSchemeKind::kUlysses:
      return "ulysses";
    case AttentionSchemeKind::kHybrid:
      return "hybrid";
  }
  return "";
}

const char* name_of(Keep keep) {
  switch (keep) {
    case Keep::kAll:
      return "all";
    case Keep::kAttention:
      return "attention";
    case Keep::kBlock:
      return "block";
    case Keep::kAuto:
      return "auto";
  }
  return "";
}

const char* name_of(OptimizerShard shard) {
  switch (shard) {
    case OptimizerShard::kNone:
      return "none";
    case OptimizerShard::kStates:
      return "states";
    case OptimizerShard::kGradients:
      return "gradients";
    case OptimizerShard::kParameters:
      return "parameters";
  }
  return "";
}

}  // namespace longspan::model
