#include "io/byte_source.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "io/file.hpp"
#include "parallel/error.hpp"

namespace longspan::io {
namespace {
constexpr std::size_t kBuffer = 1 << 20;
}  // namespace

struct ByteSource::Impl {
  std::string path;
  Descriptor file;
  std::int64_t file_bytes = 0;
  std::int64_t raw_read = 0;  // bytes taken from the descriptor
  bool gzip = false;
  z_stream zip = {};
  bool inflating = false;  // inside a gzip member
  std::vector<std::uint8_t> raw;
  std::size_t raw_begin = 0, raw_end = 0;

  explicit Impl(std::string path_) : path(std::move(path_)) {
    // Without O_NONBLOCK the open of a FIFO would wait for a writer.
    file = Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!file) fail("{}: cannot open: {}", path, std::strerror(errno));
    struct stat status = {};
    if (::fstat(file.get(), &status) != 0) fail("{}: cannot stat: {}", path, std::strerror(errno));
    if (S_ISDIR(status.st_mode)) fail("{}: is a folder, expected a file", path);
    if (!S_ISREG(status.st_mode))
      fail("{}: is not a regular file; the input is read twice, so write it to a file first", path);
    file_bytes = status.st_size;
    ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
    std::uint8_t magic[2] = {};
    gzip = read_some(0, magic, 2) == 2 && magic[0] == 0x1f && magic[1] == 0x8b;
    if (!gzip) return;
    raw.resize(kBuffer);
    if (::inflateInit2(&zip, 15 + 16) != Z_OK) fail("{}: zlib has no memory", path);
    inflating = true;
  }
  ~Impl() {
    if (gzip) ::inflateEnd(&zip);
  }

  std::size_t read_some(std::int64_t offset, std::uint8_t* to, std::size_t count) {
    std::size_t got = 0;
    while (got < count) {
      const ssize_t n =
          ::pread(file.get(), to + got, count - got, offset + static_cast<std::int64_t>(got));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("{}: cannot read at byte {}: {}", path, offset, std::strerror(errno));
      if (n == 0) break;
      got += static_cast<std::size_t>(n);
    }
    return got;
  }

  std::size_t read_raw(std::uint8_t* to, std::size_t count) {
    const std::size_t got = read_some(raw_read, to, count);
    raw_read += static_cast<std::int64_t>(got);
    return got;
  }

  std::int64_t position() const {
    return raw_read - static_cast<std::int64_t>(raw_end - raw_begin);
  }

  bool refill() {
    if (raw_begin < raw_end) return true;
    raw_begin = 0;
    raw_end = read_raw(raw.data(), raw.size());
    return raw_end > 0;
  }

  /// After a member: another one, zero padding (tar and tapes leave it), or the end.
  bool next_member() {
    while (refill() && raw[raw_begin] == 0) ++raw_begin;
    if (!refill()) return false;
    if (raw[raw_begin] != 0x1f)
      fail_damaged(
          "{}: bytes that are not gzip follow the compressed data at byte {}: cut them off or "
          "repack the file",
          path, position());
    ::inflateReset(&zip);
    return true;
  }

  std::size_t read_gzip(std::uint8_t* to, std::size_t count) {
    std::size_t done = 0;
    while (done < count) {
      if (!inflating && !(inflating = next_member())) break;
      if (!refill())
        fail_damaged(
            "{}: the gzip data end in the middle, after {} bytes: the file was cut off; fetch it "
            "again",
            path, raw_read);
      zip.next_in = raw.data() + raw_begin;
      zip.avail_in = static_cast<uInt>(raw_end - raw_begin);
      zip.next_out = to + done;
      const std::size_t piece = std::min<std::size_t>(count - done, 1u << 30);
      zip.avail_out = static_cast<uInt>(piece);
      const int code = ::inflate(&zip, Z_NO_FLUSH);
      raw_begin = raw_end - zip.avail_in;
      done += piece - zip.avail_out;
      if (code == Z_STREAM_END)
        inflating = false;
      else if (code != Z_OK && code != Z_BUF_ERROR)
        fail_damaged("{}: damaged gzip data near byte {}: {}; fetch the file again", path,
                     position(), zip.msg ? zip.msg : "inflate failed");
    }
    return done;
  }
};

ByteSource::ByteSource(const std::string& path) : impl_(std::make_unique<Impl>(path)) {}
ByteSource::~ByteSource() = default;
std::size_t ByteSource::read(std::span<std::uint8_t> bytes) {
  return impl_->gzip ? impl_->read_gzip(bytes.data(), bytes.size())
                     : impl_->read_raw(bytes.data(), bytes.size());
}
bool ByteSource::compressed() const {
  return impl_->gzip;
}
std::int64_t ByteSource::file_bytes() const {
  return impl_->file_bytes;
}
std::int64_t ByteSource::file_position() const {
  return impl_->position();
}

}  // namespace longspan::io
