#include "launcher/rank_output.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

constexpr std::string_view kOutTag = "]<stdout>:", kErrorTag = "]<stderr>:";

struct Tag {
  std::size_t length = 0;  ///< 0 = `text` does not begin with a tag
  bool open = false;       ///< it may once more has been read
  int rank = 0;
};

/// "[1,3]<stderr>:" at the beginning of `text`.
Tag read_tag(std::string_view text) {
  std::size_t at = 0;
  const auto number = [&](int& value) {
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), value);
    const std::size_t digits = static_cast<std::size_t>(end - text.data()) - at;
    at += digits;
    return digits > 0 && error == std::errc();
  };
  int job = 0, rank = 0;
  if (at == text.size() || text[at++] != '[') return {};
  if (at == text.size()) return {0, true, 0};
  if (!number(job)) return {};
  if (at == text.size()) return {0, true, 0};
  if (text[at++] != ',') return {};
  if (at == text.size()) return {0, true, 0};
  if (!number(rank)) return {};
  const std::string_view rest = text.substr(at);
  for (const std::string_view tag : {kOutTag, kErrorTag}) {
    if (rest.starts_with(tag)) return {at + tag.size(), false, rank};
    if (tag.starts_with(rest)) return {0, true, 0};
  }
  return {};
}

constexpr std::string_view kProgram = "longspan: ", kWarning = "longspan: warning: ";

}  // namespace

void TagSplitter::add(std::string_view text, std::vector<RankLine>& lines) {
  std::string& partial = partial_[speaker_];
  partial += text;
  if (!partial.empty() && partial.back() == '\n') {
    partial.pop_back();
    if (!partial.empty() && partial.back() == '\r') partial.pop_back();
    lines.push_back({speaker_, std::exchange(partial, "")});
    after_newline_ = true;
  } else if (!text.empty()) {
    after_newline_ = false;
  }
}

std::vector<RankLine> TagSplitter::take(std::string_view text) {
  const std::string all = std::exchange(held_, "") + std::string(text);
  std::vector<RankLine> lines;
  for (std::size_t at = 0; at < all.size();) {
    const std::string_view rest = std::string_view(all).substr(at);
    const Tag tag = read_tag(rest);
    if (tag.open) {
      held_ = rest;
      break;
    }
    if (tag.length > 0) {
      speaker_ = tag.rank;
      after_newline_ = false;
      at += tag.length;
      continue;
    }
    // A line that begins without a tag is mpirun's own, and so is a frame behind a line that its
    // rank has not ended.
    constexpr std::string_view kFrame = "----------------------------------------";
    if (after_newline_ || (rest.starts_with(kFrame) && !partial_[speaker_].empty()))
      speaker_ = kMpirun;
    const std::size_t stop = rest[0] == '\n'  ? 1
                             : rest[0] == '-' ? rest.find_first_not_of('-')
                                              : rest.find_first_of("[-\n", 1);
    const std::size_t length = std::min(stop, rest.size());
    add(rest.substr(0, length), lines);
    at += length;
  }
  return lines;
}

std::vector<RankLine> TagSplitter::finish() {
  std::vector<RankLine> lines;
  add(std::exchange(held_, ""), lines);
  for (auto& [rank, text] : partial_)
    if (!text.empty()) lines.push_back({rank, std::exchange(text, "")});
  return lines;
}

void RankOutput::take(Stream stream, std::string_view text) {
  for (const RankLine& line : (stream == Stream::kOut ? out_ : errors_).take(text))
    show(stream, line);
}

void RankOutput::finish() {
  for (const RankLine& line : out_.finish()) show(Stream::kOut, line);
  for (const RankLine& line : errors_.finish()) show(Stream::kErrors, line);
  for (auto& [rank, filter] : filters_) show_errors(rank, filter.finish());
}

void RankOutput::show(Stream stream, const RankLine& line) {
  if (stream == Stream::kOut) {
    began_ = began_ || line.rank != kMpirun;
    return write(stream, line.rank, line.text);
  }
  show_errors(line.rank, filters_[line.rank].take(line.text + "\n"));
}

void RankOutput::show_errors(int rank, const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(kProgram) && !line.starts_with(kWarning)) {
      if (rank == kMpirun && filters_[kMpirun].death_seen()) {
        if (death_.empty()) death_ = line;
      } else if (std::none_of(messages_.begin(), messages_.end(),
                              [&](const auto& m) { return m.first == rank; })) {
        messages_.emplace_back(rank, line);
      }
    }
    write(Stream::kErrors, rank, line);
    last_error_line_ = line;
  }
}

void RankOutput::write(Stream stream, int rank, const std::string& line) {
  // Who names itself needs no prefix.
  const bool plain = rank <= 0 || line.starts_with(fmt::format("{}rank {} ", kProgram, rank));
  std::FILE* terminal = stream == Stream::kOut ? stdout : stderr;
  const std::string shown = (plain ? std::string() : fmt::format("[{}] ", rank)) + line + "\n";
  std::fwrite(shown.data(), 1, shown.size(), terminal);
  std::fflush(terminal);
  if (log_ != nullptr) log_->add(rank == kMpirun ? "mpirun" : std::to_string(rank), line);
}

std::string RankOutput::first_failure() const {
  if (!death_.empty()) return death_;
  // mpirun tells which rank was the first to leave; the others may only have missed it.
  std::optional<BannerFilter::Departure> first;
  if (const auto mpirun = filters_.find(kMpirun); mpirun != filters_.end())
    first = mpirun->second.first_departure();
  for (const auto& [rank, message] : messages_)
    if (!first || rank == first->rank) return message;
  if (!messages_.empty()) return messages_.front().second;
  // mpirun (4.1, measured) tells it half of the time.
  const std::string who = first ? fmt::format("rank {}", first->rank) : "a rank";
  const int status = first ? first->status : status_;
  if (status == 0 || status == static_cast<int>(ExitStatus::kRequeue)) return "";
  return fmt::format("{}{}: left with status {} and said nothing", kProgram, who, status);
}

void RankOutput::say(const std::string& text) {
  const std::string line = fmt::format("{}{}\n", kProgram, text);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
  last_error_line_ = line.substr(0, line.size() - 1);
  if (log_ != nullptr) log_->add("launch", text);
}

void RankOutput::died(const std::string& line) {
  death_ = line.substr(0, line.find('\n'));
  show_errors(kMpirun, line);
}

LaunchLog::LaunchLog(std::string run_directory) : directory_(std::move(run_directory)) {}

void LaunchLog::add(const std::string& who, const std::string& line) {
  const std::string text = fmt::format("[{}] {}\n", who, line);
  if (file_.get() == nullptr)
    file_ = Handle<std::FILE*, nullptr, close_file>(
        std::fopen((directory_ + "/launch.log").c_str(), "ae"));
  if (file_.get() == nullptr) {
    constexpr std::size_t kMost = 1 << 20;
    if (waiting_.size() < kMost) waiting_ += text;
    return;
  }
  const std::string all = std::exchange(waiting_, "") + text;
  std::fwrite(all.data(), 1, all.size(), file_.get());
  std::fflush(file_.get());
}

}  // namespace longspan::launcher
