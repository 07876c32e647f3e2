#include "io/input_files.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "parallel/error.hpp"

namespace longspan::io {
namespace fs = std::filesystem;
namespace {

class Walker {
 public:
  Walker(const InputFilter& filter, InputFiles& found) : filter_(filter), found_(found) {}

  void argument(const std::string& text) {
    const fs::path path(text);
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (status.type() == fs::file_type::not_found)
      fail_usage("{}: no such file or folder", text);
    else if (error)
      unreadable(text, error.message());
    else if (fs::is_directory(status))
      folder(path, path);
    else if (fs::is_regular_file(status))
      file(path, path.filename().string());
    else
      fail_usage("{}: is neither a file nor a folder; write its contents to a file first", text);
  }

 private:
  void folder(const fs::path& root, const fs::path& path) {
    std::error_code error;
    std::vector<fs::directory_entry> entries;
    for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error))
      entries.push_back(*it);
    if (error) return unreadable(path.string(), error.message());
    std::sort(entries.begin(), entries.end(),
              [](const auto& a, const auto& b) { return a.path().native() < b.path().native(); });
    for (const fs::directory_entry& entry : entries) {
      const std::string leaf = entry.path().filename().string();
      if (leaf.starts_with('.')) {
        ++found_.hidden;
        continue;
      }
      const fs::file_status status = entry.status(error);  // of what a link points to
      if (status.type() == fs::file_type::not_found)
        unreadable(entry.path().string(), "the link points to nothing");
      else if (error)
        unreadable(entry.path().string(), error.message());
      else if (fs::is_directory(status))
        entry.is_symlink(error) ? void(++found_.folder_links) : folder(root, entry.path());
      else if (!fs::is_regular_file(status))
        ++found_.special;
      else if (!wanted(leaf))
        ++found_.other_endings;
      else if (!excluded(entry.path()))
        file(entry.path(), entry.path().lexically_relative(root).generic_string());
    }
  }

  void file(const fs::path& path, std::string name) {
    std::error_code error;
    const auto bytes = static_cast<std::int64_t>(fs::file_size(path, error));
    if (error) return unreadable(path.string(), error.message());
    if (::access(path.c_str(), R_OK) != 0) return unreadable(path.string(), std::strerror(errno));
    if (bytes == 0) {
      ++found_.empty;
      return;
    }
    found_.files.push_back({path.string(), std::move(name), bytes});
    found_.bytes += bytes;
  }

  bool wanted(const std::string& leaf) const {
    if (filter_.endings.empty()) return true;
    return std::any_of(filter_.endings.begin(), filter_.endings.end(),
                       [&](const std::string& ending) {
                         return leaf.ends_with(ending) || leaf.ends_with(ending + ".gz");
                       });
  }

  bool excluded(const fs::path& path) const {
    std::error_code none;
    return !filter_.exclude.empty() && (fs::equivalent(path, filter_.exclude, none) ||
                                        fs::equivalent(path, filter_.exclude + ".partial", none));
  }

  void unreadable(const std::string& path, const std::string& why) {
    if (!filter_.skip_unreadable)
      fail("{}: cannot read: {}; mend it, or leave out what cannot be read with --skip-unreadable",
           path, why);
    found_.unreadable.push_back(path + ": " + why);
  }

  const InputFilter& filter_;
  InputFiles& found_;
};

}  // namespace

InputFiles list_input_files(const std::vector<std::string>& arguments, const InputFilter& filter) {
  InputFiles found;
  Walker walker(filter, found);
  for (const std::string& argument : arguments) walker.argument(argument);
  return found;
}

}  // namespace longspan::io
