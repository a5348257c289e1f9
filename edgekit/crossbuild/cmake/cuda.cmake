# What a runtime with CUDA has besides, read right after project(): the recipe itself stays the same for all.
# A board finds CUDA's libraries by itself; where they are in the container is no business of the files that come out.
set(CMAKE_SKIP_BUILD_RPATH ON)

# The library for Python is made of object files, so those of ggml-cuda and what they need have to be named; the native
# tools get both from llama.cpp's own targets.
function(edgekit_add_cuda)
  find_package(CUDAToolkit REQUIRED)
  target_sources(shared-ggml PRIVATE $<TARGET_OBJECTS:ggml-cuda>)
  target_link_libraries(shared-ggml PRIVATE CUDA::cudart CUDA::cublas CUDA::cuda_driver)
endfunction()
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL edgekit_add_cuda)
