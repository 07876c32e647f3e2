/// What the ranks write, taken apart again after mpirun has mixed it (`mpirun --tag-output`), shown
/// and logged: rank 0's lines as they are, those of other ranks as "[3] ...", and the message of
/// the rank that failed first where nobody misses it.
#pragma once

#include <cstdio>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "launcher/launch.hpp"
#include "parallel/handle.hpp"

namespace longspan::launcher {

/// Who speaks: a rank, or mpirun itself.
constexpr int kMpirun = -1;

/// A whole line without '\n'.
struct RankLine {
  int rank = kMpirun;
  std::string text;
};

/// Takes one of mpirun's streams apart. mpirun (Open MPI 4.1, measured) writes "[1,3]<stdout>:"
/// before every piece that it has read from a rank, so the tag may stand in the middle of a line,
/// and another rank's piece between two pieces of one line. Its own words have no tag.
class TagSplitter {
 public:
  /// The lines that are complete now.
  std::vector<RankLine> take(std::string_view text);
  /// What is left of every speaker at the end of the stream.
  std::vector<RankLine> finish();

 private:
  void add(std::string_view text, std::vector<RankLine>& lines);
  std::string held_;  ///< may be the beginning of a tag
  int speaker_ = kMpirun;
  bool after_newline_ = true;
  std::map<int, std::string> partial_;
};

/// `<run directory>/launch.log`. A run that is refused leaves no folder behind: until the ranks
/// have made it, lines wait in memory. What a full disk does not take is lost, and the run goes on.
class LaunchLog {
 public:
  explicit LaunchLog(std::string run_directory);
  void add(const std::string& who, const std::string& line);

 private:
  static void close_file(std::FILE* file) { std::fclose(file); }
  std::string directory_, waiting_;
  Handle<std::FILE*, nullptr, close_file> file_;
};

/// Both streams of mpirun, to the terminal and to a log file.
class RankOutput {
 public:
  enum class Stream { kOut, kErrors };
  /// Everything also goes to `log`, each line with "[rank] " or "[mpirun] " before it; null = no
  /// log.
  explicit RankOutput(LaunchLog* log = nullptr) : log_(log) {}
  void take(Stream stream, std::string_view text);
  void finish();  ///< at the end of both streams

  /// Whether a rank has written to stdout: train does once the run is set up.
  bool began() const { return began_; }
  /// Whether mpirun has told which rank a signal ended.
  bool death_seen() const { return !death_.empty(); }
  /// In one line without '\n', what the rank that failed first had to say: of what it died, else
  /// its own message, else its exit status. Empty if nobody failed.
  std::string first_failure() const;
  /// Whether the user saw other lines of stderr after that message, or never saw it.
  bool buried() const { return last_error_line_ != first_failure(); }
  /// "longspan: <text>" on stderr and in the log: what launch itself has to say.
  void say(const std::string& text);
  /// Of what a rank died, if mpirun did not say so: a line of death_line().
  void died(const std::string& line);
  /// The exit status of all, for ranks that say nothing of themselves.
  void ended(int status) { status_ = status; }

 private:
  void show(Stream stream, const RankLine& line);
  void show_errors(int rank, const std::string& text);
  void write(Stream stream, int rank, const std::string& line);

  LaunchLog* log_;
  TagSplitter out_, errors_;
  std::map<int, BannerFilter> filters_;  ///< Open MPI frames its messages in ranks and in mpirun
  std::vector<std::pair<int, std::string>> messages_;  ///< first error of each rank
  std::string death_, last_error_line_;
  int status_ = 0;
  bool began_ = false;
};

}  // namespace longspan::launcher
