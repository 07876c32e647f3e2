/// The files a dataset is made from: what the user named, folders walked. Read next:
/// document_input.hpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longspan::io {

struct InputFile {
  std::string path;
  std::string name;  ///< below the folder that was given, or the bare file name: the same wherever
                     ///< the data lie
  std::int64_t bytes = 0;  ///< on disk
};

struct InputFilter {
  std::vector<std::string>
      endings;  ///< ".hpp": files of folders must end so, or so and ".gz"; empty = all
  bool skip_unreadable = false;  ///< count unreadable files and folders instead of failing
  std::string exclude;           ///< a file never taken from a folder: the output of this very run
};

/// In the order of the arguments, each folder's files sorted by path.
struct InputFiles {
  std::vector<InputFile> files;
  std::int64_t bytes = 0;
  std::int64_t empty = 0, hidden = 0, special = 0, other_endings = 0,
               folder_links = 0;        ///< left out
  std::vector<std::string> unreadable;  ///< left out, with the reason; only with skip_unreadable
};

/// Named files are taken whatever their ending. Folders are walked to the bottom; links to folders
/// are not followed, so there are no loops; entries that begin with a dot, sockets, pipes and
/// devices are left out and counted, as are empty files. Throws Error: usage for an argument that
/// does not exist, failed for a file or folder that cannot be read.
InputFiles list_input_files(const std::vector<std::string>& arguments, const InputFilter& filter);

}  // namespace longspan::io
