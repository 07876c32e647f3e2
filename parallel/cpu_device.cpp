#include "parallel/device.hpp"
#include <cstdlib>
#include <cstring>
#include <mutex>
namespace longspan{namespace{
struct S:Stream{void synchronize()override{}};
struct D:Device{S s;std::int64_t use=0,peak=0;std::mutex m;
 std::string name()const override{return "cpu";}
 void*allocate(std::size_t b)override{std::lock_guard l(m);use+=b;if(use>peak)peak=use;void*p=aligned_alloc(64,(b+64)/64*64);std::memset(p,0xff,b);return p;}
 void release(void*p,std::size_t b)noexcept override{std::lock_guard l(m);use-=b;free(p);}
 void copy(void*t,const void*f,std::size_t b,Stream&)override{std::memcpy(t,f,b);}
 void fill_zero(void*t,std::size_t b,Stream&)override{std::memset(t,0,b);}
 Stream&stream()override{return s;}
 std::int64_t bytes_in_use()const override{return use;}std::int64_t peak_bytes()const override{return peak;}void reset_peak()override{peak=use;}
};}
Device&cpu_device(){static D d;return d;}}
