// A GPU plug-in of another build, as far as the program can see.
extern "C" void* longspan_cuda_open(const char*, const char** mine) {
  *mine = "0.0.9-another";
  return nullptr;
}
