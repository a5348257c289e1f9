# edgekit's images: `docker buildx bake cross-arm64`, `docker buildx bake jetson`, … from this folder; see docs/docker.md.
# Every variable can be set in the environment. docker/resolve-digests.py prints the base images pinned by digest.

variable "VERSION" {
  default = "0.1.0"
}

variable "REPOSITORY" {
  default = "edgekit"
}

# Base images.
variable "DEBIAN_IMAGE" {
  default = "debian:bookworm-slim"
}

# JetPack 6 (L4T 36.4): CUDA 12.6, arm64.
variable "JETSON_IMAGE" {
  default = "nvcr.io/nvidia/l4t-jetpack:r36.4.0"
}

# JetPack 7: Thor takes the CUDA 13 of arm64 servers.
variable "THOR_IMAGE" {
  default = "nvcr.io/nvidia/cuda:13.0.0-devel-ubuntu24.04"
}

group "default" {
  targets = ["cross-arm64"]
}

group "jetson" {
  targets = ["cross-jetson", "cross-jetson-thor"]
}

group "tools" {
  targets = ["builder", "runner"]
}

group "all" {
  targets = ["cross-arm64", "jetson", "tools"]
}

target "_common" {
  context = "."
  args = {
    VERSION = VERSION
  }
}

target "_debian" {
  inherits = ["_common"]
  args = {
    DEBIAN_IMAGE = DEBIAN_IMAGE
  }
}

target "cross-arm64" {
  inherits   = ["_debian"]
  dockerfile = "docker/cross-arm64/Dockerfile"
  tags       = ["${REPOSITORY}/cross-arm64:${VERSION}"]
}

target "cross-jetson" {
  inherits   = ["_common"]
  dockerfile = "docker/cross-jetson/Dockerfile"
  platforms  = ["linux/arm64"]
  args = {
    JETSON_IMAGE      = JETSON_IMAGE
    CUDA_ARCHITECTURE = "87"
  }
  tags = ["${REPOSITORY}/cross-jetson:${VERSION}"]
}

target "cross-jetson-thor" {
  inherits   = ["_common"]
  dockerfile = "docker/cross-jetson/Dockerfile"
  platforms  = ["linux/arm64"]
  args = {
    JETSON_IMAGE      = THOR_IMAGE
    CUDA_ARCHITECTURE = "110"
  }
  tags = ["${REPOSITORY}/cross-jetson-thor:${VERSION}"]
}

target "builder" {
  inherits   = ["_debian"]
  dockerfile = "docker/builder/Dockerfile"
  tags       = ["${REPOSITORY}/builder:${VERSION}"]
}

target "runner" {
  inherits   = ["_debian"]
  dockerfile = "docker/runner/Dockerfile"
  tags       = ["${REPOSITORY}/runner:${VERSION}"]
}
