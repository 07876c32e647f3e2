// A plug-in that needs a library that is not there.
extern "C" int a_function_that_no_library_has();
extern "C" void* longspan_cuda_open(const char*, const char**) {
  return a_function_that_no_library_has() == 0 ? nullptr : nullptr;
}
