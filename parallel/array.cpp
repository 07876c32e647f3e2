#include "parallel/array.hpp"
#include <fmt/format.h>
#include <fmt/ranges.h>
namespace longspan {
std::size_t size_of(DType d){switch(d){case DType::kU8:return 1;case DType::kBF16:case DType::kU16:return 2;case DType::kI64:case DType::kU64:case DType::kF64:return 8;default:return 4;}}
std::string_view name_of(DType d){static const char*n[]={"f32","bf16","u8","u16","u32","i32","i64","u64","f64"};return n[(int)d];}
std::int64_t element_count(const Shape&s){std::int64_t c=1;for(auto v:s)c*=v;return c;}
std::string to_string(const Shape&s){return fmt::format("[{}]",fmt::join(s,", "));}
ShardedArray rows_of_replica(const ShardedArray&a,int index,int count){ShardedArray r=a;if(a.shape.empty()){return r;}
 std::int64_t b=part_begin(a.shape[0],index,count),e=part_begin(a.shape[0],index+1,count);std::int64_t row=1;for(size_t i=1;i<a.shape.size();++i)row*=a.shape[i];
 r.offset[0]+=b;r.shape[0]=e-b;r.data=(char*)a.data+b*row*(int64_t)size_of(a.dtype);return r;}
}
