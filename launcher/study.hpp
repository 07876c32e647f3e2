/// A scaling study: which runs it is made of. A point is one way to run a configuration: ranks,
/// mesh, scheme, length and batch; points that differ in their ranks only are a series, whose
/// smallest one is what the others are compared with. Pure; nothing here communicates. Read next:
/// study_files.hpp (its folder), study_run.hpp (carrying it out), study_result.hpp (what came out),
/// scale.cpp (the command).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/run_config.hpp"
#include "model/config.hpp"
#include "parallel/mesh.hpp"

namespace longspan::launcher {

enum class Scaling {
  kStrong,      ///< every point does the same work
  kWeakBatch,   ///< every rank does: the batch grows with the ranks
  kWeakLength,  ///< every rank has as many tokens: the sequence grows with the ranks
};

struct StudySpec {
  /// What every point does, apart from what follows. model.vocabulary is set, data.path absolute.
  RunConfig config;
  std::vector<int> ranks;          ///< ascending
  std::vector<MeshConfig> meshes;  ///< 0 = the ranks that the other axes leave, "N"
  std::vector<model::AttentionSchemeKind> schemes;
  std::vector<std::int64_t> lengths;  ///< kWeakLength: of one rank
  Scaling scaling = Scaling::kStrong;
  std::int64_t steps = 10, warmup = 2;  ///< of a run; the first `warmup` do not count
  std::int64_t repeats = 1;
  bool submit = false;     ///< as Slurm jobs
  int ranks_per_node = 0;  ///< of these; 0 = all of a point on one node
};

struct StudyPoint {
  std::string name;  ///< also of its folder: "2-ranks-1x2x1-ring-4096-b8"
  MeshShape mesh;
  /// What auto has chosen where it was asked for; ring where nothing is shared.
  model::AttentionSchemeKind scheme = model::AttentionSchemeKind::kRing;
  std::int64_t length = 0, batch = 0;  ///< tokens of a sequence, sequences of a step
  int nodes = 1;
  std::vector<int> series;  ///< indices into Study::series; the first one is its own
  bool scheme_matters() const { return mesh.context > 1; }
  int ranks() const { return mesh.size(); }
  std::int64_t tokens() const { return length * batch; }  ///< of a step
};

struct LeftOut {
  std::string name, why;  ///< why: one line
};

struct Study {
  std::vector<StudyPoint> points;
  std::vector<std::string> series;  ///< "Nx1x1 ring 4096"
  std::vector<LeftOut> left_out;    ///< what cannot exist, and why
};

/// All points, in the order in which they are run. A mesh with an N is combined with every number
/// of ranks; one without has its own, and all of these together are a series. Where the context
/// is not shared the scheme does not matter: one point serves all schemes. The batch of
/// Scaling::kStrong and kWeakLength is train.global-batch, or if that is 0 the smallest that all
/// meshes can split; that of kWeakBatch is train.global-batch (0 = train.micro-batch) * ranks.
/// Throws Error (usage) if no point is left.
Study plan_study(const StudySpec& spec);

/// The configuration of a point, resolved as its run will be, for the formulas.
RunConfig config_of(const StudySpec& spec, const StudyPoint& point);
/// What makes the study's configuration into the point's: "--mesh.data", "2", ...
std::vector<std::string> settings_of(const StudyPoint& point);

/// "2x1x1" or "Nx1x2", data x context x tensor, N at most once. Throws Error (usage).
MeshConfig parse_mesh(const std::string& text);
std::string mesh_text(const MeshConfig& mesh);
std::string mesh_text(const MeshShape& mesh);
std::string scheme_text(const StudyPoint& point);  ///< "-" where it does not matter
std::string scaling_text(Scaling scaling);         ///< "strong", "weak by batch", ...

}  // namespace longspan::launcher
