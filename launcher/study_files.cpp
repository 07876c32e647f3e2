#include "launcher/study_files.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "launcher/options.hpp"
#include "launcher/study_table.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// What identifies a study, apart from its configuration.
Json request_of(const StudySpec& spec) {
  Json meshes = Json::array(), schemes = Json::array();
  for (const MeshConfig& mesh : spec.meshes) meshes.push_back(mesh_text(mesh));
  for (const auto scheme : spec.schemes) schemes.push_back(name_of(scheme));
  return {{"scaling", scaling_text(spec.scaling)},
          {"ranks", spec.ranks},
          {"mesh", meshes},
          {"scheme", schemes},
          {"length", spec.lengths},
          {"steps", spec.steps},
          {"warmup", spec.warmup},
          {"repeat", spec.repeats},
          {"submit", spec.submit},
          {"ranks_per_node", spec.ranks_per_node}};
}

Scaling parse_scaling(const std::string& text) {
  for (const Scaling s : {Scaling::kStrong, Scaling::kWeakBatch, Scaling::kWeakLength})
    if (scaling_text(s) == text) return s;
  fail("'{}' is no kind of scaling", text);
}

model::AttentionSchemeKind parse_scheme(const std::string& text) {
  return parse_config("", {"--attention.scheme", text}).attention.scheme;
}

io::Descriptor locked(const std::string& path) {
  io::Descriptor lock(::open((path + "/.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (!lock) io::fail_errno(path, "cannot write into the study", errno);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    fail(
        "{} is the study of a longspan scale that goes on: wait for its end, or set --output to "
        "another place",
        path);
  return lock;
}

}  // namespace

void replace_file(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".new";
  io::remove_path(temporary);
  auto file = io::RawFile::create(temporary);
  file.write(text.data(), static_cast<std::int64_t>(text.size()), 0);
  file.sync();
  file.close();
  io::rename_path(temporary, path);
}

std::string to_json(const StudySpec& spec, const Study& study) {
  Json points = Json::array(), left_out = Json::array();
  for (const StudyPoint& point : study.points)
    points.push_back({{"name", point.name},
                      {"ranks", point.ranks()},
                      {"nodes", point.nodes},
                      {"mesh", mesh_text(point.mesh)},
                      {"scheme", scheme_text(point)},
                      {"length", point.length},
                      {"batch", point.batch}});
  for (const LeftOut& left : study.left_out)
    left_out.push_back({{"name", left.name}, {"why", left.why}});
  const Json json = {{"version", kVersion},
                     {"request", request_of(spec)},
                     {"points", points},
                     {"left_out", left_out}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

StudySpec parse_study(const std::string& text, const RunConfig& config, const std::string& path) {
  StudySpec spec;
  spec.config = config;
  try {
    const Json json = Json::parse(text);
    if (json.at("version").get<int>() != kVersion)
      fail("its version is {}, this program knows {}", json.at("version").get<int>(), kVersion);
    const Json& request = json.at("request");
    spec.scaling = parse_scaling(request.at("scaling").get<std::string>());
    request.at("ranks").get_to(spec.ranks);
    for (const auto& mesh : request.at("mesh"))
      spec.meshes.push_back(parse_mesh(mesh.get<std::string>()));
    for (const auto& scheme : request.at("scheme"))
      spec.schemes.push_back(parse_scheme(scheme.get<std::string>()));
    request.at("length").get_to(spec.lengths);
    request.at("steps").get_to(spec.steps);
    request.at("warmup").get_to(spec.warmup);
    request.at("repeat").get_to(spec.repeats);
    request.at("submit").get_to(spec.submit);
    request.at("ranks_per_node").get_to(spec.ranks_per_node);
  } catch (const std::exception& e) {
    fail_damaged("{} is not the study of a longspan scale: {}: remove the folder to begin anew",
                 path, e.what());
  }
  if (spec.ranks.empty() || spec.lengths.empty() || spec.repeats < 1 || spec.steps <= spec.warmup ||
      spec.warmup < 0 || spec.repeats > 1000 ||
      std::any_of(spec.ranks.begin(), spec.ranks.end(), [](int n) { return n < 1; }))
    fail_damaged("{}: ranks, lengths, repeats or steps cannot be: remove the folder to begin anew",
                 path);
  return spec;
}

std::string difference(const StudySpec& wanted, const StudySpec& there) {
  const Json a = request_of(wanted), b = request_of(there);
  for (const auto& [key, value] : a.items())
    if (value != b[key])
      return fmt::format("{} {} instead of {}", key, value.dump(), b[key].dump());
  const auto now = describe_options(wanted.config), then = describe_options(there.config);
  for (std::size_t i = 0; i < now.size(); ++i)
    if (now[i].value != then[i].value)
      return fmt::format("{}={} instead of {}", now[i].name, ini_value(now[i].value),
                         ini_value(then[i].value));
  return "";
}

StudyFolder::StudyFolder(const std::string& path, const std::optional<StudySpec>& wanted)
    : path_(path) {
  const std::string record = path + "/study.json";
  const bool there = io::is_regular_file(record);
  if (!there && !wanted)
    fail_usage("scale: there is no study in {} to go on with: begin one with --config F", path);
  if (!there) {
    // A study that was killed before it had its study.json leaves these.
    for (const std::string& name : io::list_directory(path))
      if (name != ".lock" && name != "config.ini" && name != "config.ini.new" &&
          name != "study.json.new")
        fail_usage("scale: --output {}: it has {} and no study.json: name a new folder", path,
                   name);
    study_ = plan_study(*wanted);
    spec_ = *wanted;
    io::make_directories(path);
    lock_ = locked(path);
    replace_file(config_path(), to_ini(spec_.config));
    replace_file(record, to_json(spec_, study_));
    return;
  }
  lock_ = locked(path);
  spec_ = parse_study(read_file(record), parse_config(config_path(), {}), record);
  if (wanted)
    if (const std::string what = difference(*wanted, spec_); !what.empty())
      fail_usage(
          "scale: {} has another study: {}: set --output to a new folder, or go on with that one: "
          "longspan scale --output {}",
          path, what, path);
  study_ = plan_study(spec_);
}

std::string StudyFolder::run_directory(std::size_t point, std::int64_t repeat) const {
  return fmt::format("{}/runs/{}/{}", path_, study_.points[point].name, repeat + 1);
}

std::optional<RunResult> StudyFolder::result(std::size_t point, std::int64_t repeat) const {
  return read_result(read_file(run_directory(point, repeat) + ".json"));
}

void StudyFolder::write_result(std::size_t point, std::int64_t repeat,
                               const RunResult& result) const {
  const std::string path = run_directory(point, repeat);
  io::make_directories(io::parent_path(path));
  replace_file(path + ".json", to_json(result));
}

void StudyFolder::forget(std::size_t point, std::int64_t repeat) const {
  io::remove_path(run_directory(point, repeat) + ".json");
}

std::vector<std::vector<std::optional<RunResult>>> StudyFolder::results() const {
  std::vector<std::vector<std::optional<RunResult>>> all;
  for (std::size_t p = 0; p < study_.points.size(); ++p) {
    auto& of_point = all.emplace_back();
    for (std::int64_t r = 0; r < spec_.repeats; ++r) of_point.push_back(result(p, r));
  }
  return all;
}

void StudyFolder::write_tables(const std::vector<PointResult>& rows) const {
  write_file("results.csv", study_csv(study_, rows));
  const std::string temporary = path_ + "/results.h5.new";
  io::remove_path(temporary);
  write_study_hdf5(temporary, study_, rows);
  io::rename_path(temporary, path_ + "/results.h5");
}

void StudyFolder::write_file(const std::string& name, const std::string& text) const {
  replace_file(path_ + "/" + name, text);
}

}  // namespace longspan::launcher
