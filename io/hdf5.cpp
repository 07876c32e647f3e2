#include "io/hdf5.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "io/file.hpp"
#include "io/hdf5_internal.hpp"
#include "parallel/error.hpp"

namespace longspan::io::hdf5 {
namespace {

std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

}  // namespace

Lock::Lock() : held_(library_mutex()) {
  // The library's clean-up at exit crashes (1.10.8: H5F__close_cb) once writing a file has failed,
  // on a full disk for instance. Files close themselves, so it is not needed. Must be the first
  // call.
  static const bool left_alone = H5dont_atexit() >= 0;
  thread_local const bool silenced = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  static_cast<void>(left_alone && silenced);
}

std::string version() {
  const Lock lock;
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return fmt::format("{}.{}.{}", major, minor, release);
}

File File::create(const std::string& path, std::int64_t metadata_bytes) {
  const Lock lock;
  const Id access(H5Pcreate(H5P_FILE_ACCESS));
  H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110);
  H5Pset_alignment(access.get(), 65536, 4096);
  H5Pset_meta_block_size(
      access.get(), static_cast<hsize_t>(std::clamp<std::int64_t>(metadata_bytes, 2048, 1 << 26)));
  // A leaked id would keep the file open behind our back; with SEMI, closing fails and the leak
  // shows.
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_SEMI);
  struct stat existing = {};
  if (::lstat(path.c_str(), &existing) == 0)
    throw Error(fmt::format("{}: cannot create: the file exists already", path));
  File file(path);
  file.writing_ = true;
  const Id creation(H5Pcreate(H5P_FILE_CREATE));
  H5Pset_obj_track_times(creation.get(), false);  // of the root: equal contents, equal bytes
  file.id_ = H5Fcreate(path.c_str(), H5F_ACC_EXCL, creation.get(), access.get());
  if (file.id_ < 0) fail_hdf5(path, "cannot create", ExitStatus::kFailed);
  return file;
}

File File::open(const std::string& path) {
  struct stat found = {};
  if (::stat(path.c_str(), &found) != 0)
    fail_damaged("{}: cannot open: {}", path, std::strerror(errno));
  if (S_ISDIR(found.st_mode))
    fail_damaged("{}: cannot open: it is a folder, not an HDF5 file", path);
  if (!S_ISREG(found.st_mode))  // opening a pipe would wait for ever
    fail_damaged("{}: cannot open: it is a pipe, socket or device, not an HDF5 file", path);
  if (found.st_size == 0) fail_damaged("{}: cannot open: the file is empty", path);
  const Lock lock;
  const Id access(H5Pcreate(H5P_FILE_ACCESS));
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_SEMI);
  File file(path);
  file.id_ = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get());
  if (file.id_ < 0) fail_hdf5(path, "cannot open", ExitStatus::kDamaged);
  return file;
}

File File::open_image(std::span<const std::byte> bytes, const std::string& name) {
  const Lock lock;
  const Id access(H5Pcreate(H5P_FILE_ACCESS));
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_SEMI);
  File file(name);
  // The core driver copies the image; without a backing store nothing touches the disk.
  if (H5Pset_fapl_core(access.get(), 1 << 16, 0) < 0 ||
      H5Pset_file_image(access.get(), const_cast<std::byte*>(bytes.data()), bytes.size()) < 0 ||
      (file.id_ = H5Fopen(name.c_str(), H5F_ACC_RDONLY, access.get())) < 0)
    fail_hdf5(name, "cannot open", ExitStatus::kDamaged);
  return file;
}

File File::update(const std::string& path) {
  const Lock lock;
  const Id access(H5Pcreate(H5P_FILE_ACCESS));
  H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110);
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_SEMI);
  File file(path);
  file.writing_ = true;
  file.id_ = H5Fopen(path.c_str(), H5F_ACC_RDWR, access.get());
  if (file.id_ < 0) fail_hdf5(path, "cannot open for writing", ExitStatus::kFailed);
  return file;
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)), id_(std::exchange(other.id_, -1)), writing_(other.writing_) {}

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(id_, other.id_);
  std::swap(writing_, other.writing_);
  return *this;
}

File::~File() {
  if (id_ < 0) return;
  const Lock lock;
  if (H5Fclose(id_) < 0) H5Eclear2(H5E_DEFAULT);
}

void File::close() {
  if (id_ < 0) return;
  const Lock lock;
  if (writing_ && H5Fflush(id_, H5F_SCOPE_LOCAL) < 0)
    fail_hdf5(path_, "cannot write", ExitStatus::kFailed);
  const bool closed = H5Fclose(std::exchange(id_, -1)) >= 0;
  if (!closed) fail_hdf5(path_, "cannot close", ExitStatus::kFailed);
}

bool File::exists(const std::string& name) const {
  const Lock lock;
  return missing_prefix(id_, name).empty();
}

std::vector<std::string> File::list(const std::string& group) const {
  const Lock lock;
  const Id object = open_object(id_, path_, group);
  std::vector<std::string> names;
  const auto collect = [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    return 0;
  };
  hsize_t position = 0;
  if (H5Literate(object.get(), H5_INDEX_NAME, H5_ITER_INC, &position, collect, &names) < 0)
    fail_hdf5(path_, fmt::format("cannot list '{}'", group), ExitStatus::kDamaged);
  return names;
}

namespace {

void collect_datasets(hid_t file, const File& of, const std::string& group,
                      std::set<haddr_t>& entered, std::vector<std::string>& found) {
  const std::string prefix = group == "/" ? "" : group + "/";
  for (const auto& name : of.list(group)) {
    const std::string full = prefix + name;
    if (!is_hard_link(file, full)) continue;
    const Id object(H5Oopen(file, full.c_str(), H5P_DEFAULT));
    H5O_info_t info = {};
    if (!object || H5Oget_info2(object.get(), &info, H5O_INFO_BASIC) < 0) {
      H5Eclear2(H5E_DEFAULT);
    } else if (info.type == H5O_TYPE_DATASET) {
      found.push_back(full);
    } else if (info.type == H5O_TYPE_GROUP && entered.insert(info.addr).second) {
      collect_datasets(file, of, full, entered, found);
    }
  }
}

}  // namespace

std::vector<std::string> File::datasets(const std::string& group) const {
  const Lock lock;
  std::set<haddr_t> entered;
  const Id top = open_object(id_, path_, group);
  H5O_info_t info = {};
  if (H5Oget_info2(top.get(), &info, H5O_INFO_BASIC) >= 0) entered.insert(info.addr);
  std::vector<std::string> found;
  collect_datasets(id_, *this, group, entered, found);
  return found;
}

DatasetInfo File::info(const std::string& name) const {
  const Lock lock;
  const Id dataset = open_dataset(id_, path_, name);
  const Id type(H5Dget_type(dataset.get()));
  const Id space(H5Dget_space(dataset.get()));
  const Id properties(H5Dget_create_plist(dataset.get()));
  if (!type || !space || !properties)
    fail_hdf5(path_, fmt::format("cannot look at dataset '{}'", name), ExitStatus::kDamaged);
  DatasetInfo info;
  info.dtype = dtype_of(type.get());
  info.type_text = describe_type(type.get());
  info.shape =
      H5Sget_simple_extent_type(space.get()) == H5S_NULL ? Shape{0} : shape_of(space.get());
  info.bytes_per_element = static_cast<std::int64_t>(H5Tget_size(type.get()));
  // Everything below, and every caller, multiplies these.
  if (!checked_bytes(info.shape, std::max<std::int64_t>(info.bytes_per_element, 8)))
    fail_damaged("{}: dataset '{}' claims the shape {}: no file holds so much", path_, name,
                 to_string(info.shape));
  const auto layout = H5Pget_layout(properties.get());
  info.is_virtual = layout == H5D_VIRTUAL;
  info.compact = layout == H5D_COMPACT;
  if (layout == H5D_CHUNKED) {
    std::vector<hsize_t> chunk(info.shape.size());
    H5Pget_chunk(properties.get(), static_cast<int>(chunk.size()), chunk.data());
    info.chunk.assign(chunk.begin(), chunk.end());
  }
  info.contiguous = layout == H5D_CONTIGUOUS && H5Pget_external_count(properties.get()) == 0;
  const haddr_t offset = info.contiguous ? H5Dget_offset(dataset.get()) : HADDR_UNDEF;
  hsize_t file_bytes = 0;
  const auto bytes = static_cast<hsize_t>(info.bytes());
  if (offset != HADDR_UNDEF && H5Fget_filesize(id_, &file_bytes) >= 0 && bytes <= file_bytes &&
      offset <= file_bytes - bytes)
    info.offset = offset;
  H5Eclear2(H5E_DEFAULT);
  return info;
}

void File::require_plain(const std::string& name, std::int64_t most_bytes) const {
  const Lock lock;
  const DatasetInfo found = info(name);
  const char* const fix = "it must be contiguous (h5repack -l CONTI -f NONE)";
  if (found.is_virtual) fail_damaged("{}: dataset '{}' is virtual: {}", path_, name, fix);
  if (!found.chunk.empty())
    fail_damaged("{}: dataset '{}' is chunked or compressed: {}", path_, name, fix);
  if (!found.contiguous && !found.compact)
    fail_damaged("{}: dataset '{}' lies in an external file: {}", path_, name, fix);
  if (found.bytes() > most_bytes)
    fail_damaged("{}: dataset '{}' claims {} of shape {}, at most {} are read here", path_, name,
                 format_bytes(found.bytes()), to_string(found.shape), format_bytes(most_bytes));
  if (found.bytes() == 0) return;
  if (found.contiguous && !found.offset)
    fail_damaged("{}: dataset '{}' of shape {} does not lie inside the file", path_, name,
                 to_string(found.shape));
}

}  // namespace longspan::io::hdf5
