/// The folder of a study:
///   study.json                       what was asked for, the points, what is left out
///   config.ini                       the configuration of all points
///   runs/<point>/<repeat>/           a run's directory
///   runs/<point>/<repeat>.json       its result, written in one move: a run that has one is over
///   runs/<point>/<repeat>.out, .err  what it said
///   results.h5, results.csv, report.html   made anew from all results
/// Nothing here communicates. Read next: study_run.hpp.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/file.hpp"
#include "launcher/study_result.hpp"

namespace longspan::launcher {

class StudyFolder {
 public:
  /// `path` absolute. Makes the folder, or continues the study that is in it, and holds it against
  /// a second one. `wanted`: what the command line asks for; nothing: go on with what is there.
  /// Throws Error (usage) if there is another study with the first setting that differs, if
  /// something else is in the folder, or if nothing is there to go on with.
  StudyFolder(const std::string& path, const std::optional<StudySpec>& wanted);

  const std::string& path() const { return path_; }
  const StudySpec& spec() const { return spec_; }
  const Study& study() const { return study_; }
  std::string config_path() const { return path_ + "/config.ini"; }
  std::string run_directory(std::size_t point, std::int64_t repeat) const;

  std::optional<RunResult> result(std::size_t point, std::int64_t repeat) const;
  void write_result(std::size_t point, std::int64_t repeat, const RunResult& result) const;
  /// So that the run is run again.
  void forget(std::size_t point, std::int64_t repeat) const;
  /// Of all points and repeats.
  std::vector<std::vector<std::optional<RunResult>>> results() const;
  /// results.h5 and results.csv, each in one move. Throws Error.
  void write_tables(const std::vector<PointResult>& rows) const;
  void write_file(const std::string& name, const std::string& text) const;

 private:
  std::string path_;
  StudySpec spec_;
  Study study_;
  io::Descriptor lock_;
};

/// What study.json holds of the request.
std::string to_json(const StudySpec& spec, const Study& study);
/// The inverse; `config` is that of config.ini. Throws Error (damaged), naming `path`.
StudySpec parse_study(const std::string& json, const RunConfig& config, const std::string& path);
/// The first thing in which two studies differ, "--steps 10 instead of 5"; empty = they agree.
std::string difference(const StudySpec& wanted, const StudySpec& there);

/// The old file stays whole until the new one is written. Throws Error.
void replace_file(const std::string& path, const std::string& text);

}  // namespace longspan::launcher
